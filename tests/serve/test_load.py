"""The service on a real Ray under load, while its processes are killed, stopped and replaced."""

import asyncio
import time

import numpy as np
import pytest
from ray import serve

from clipray import cluster
from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.manifest import IndexFolder
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted, search_shards
from clipray.index.workers import Here
from clipray.manifest import ModelSource
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings
from tests.serve.deployed import Deployed, kill, stopped
from tests.serve.load import Load, figures

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("ray_session")]

DIM, K, ROWS, SHARDS = 32, 5, 2000, 4
QUERIES = np.random.default_rng(5).normal(size=(64, DIM)).astype(np.float32)
GROUPS = ("ShardGroup-0", "ShardGroup-1")
WANTED = Wanted(K, columns=("caption",))


def say(*told):
    print(*told)  # noqa: T201  a soak test shows its figures


@pytest.fixture(scope="module")
def root(tmp_path_factory, encoder, model):
    folder = tmp_path_factory.mktemp("load")
    build_index(folder / "index", embeddings(folder, 0, encoder, model), shards=SHARDS)
    return folder / "index"


def embeddings(folder, number, encoder, model):
    """Keys that repeat from number to number, with other vectors."""
    parts = cut_parts(random_halves(ROWS, DIM, seed=number), SHARDS)
    captions = {
        at: {"caption": [f"{key} of {number}" for key in keys]} for at, (keys, _) in enumerate(parts)
    }
    of = (encoder.identity, ModelSource(name=str(model)))
    return write_embeddings(folder / f"emb{number}", parts, captions, model=of)


@pytest.fixture(scope="module")
def service(root):
    began = time.monotonic()
    yield Deployed(root, groups=2, replicas=2, max_requests=64, watch_s=1)
    say(f"module {time.monotonic() - began:.0f} s")
    serve.shutdown()


@pytest.fixture
def load(service):
    def made(**options):
        return Load(service.url, QUERIES, k=K, **options)

    return made


def truth(root, shards=range(SHARDS)):
    """What each query finds in some shards."""
    index = Index.open(root)
    return search_shards([index._shards[n] for n in shards], unit_queries(QUERIES, DIM), WANTED)


def test_a_replica_killed_again_and_again_fails_no_query(service, load, root):
    async def main():
        async with load() as run:
            await run.more(200)
            for _ in range(3):
                killed = [service.pids(name)[0] for name in GROUPS]  # the others are new
                kill(*killed)
                for name in GROUPS:
                    await run.until(lambda name=name: service.is_whole(name, 2, killed))
        return run

    run = asyncio.run(main())
    say("six replicas killed:", run.figures())
    assert not run.errors
    assert not run.degraded
    assert len(run.asked) >= 2000
    expected = truth(root)
    assert all(asked.found.matches == expected[asked.query] for asked in run.asked)


def test_a_group_that_is_gone_is_told_and_comes_back(service, load, root):
    async def main():
        async with load() as run:
            await run.more(200)
            before, killed = len(run.asked), service.pids("ShardGroup-0")
            kill(*killed)
            back = await run.until(lambda: service.is_whole("ShardGroup-0", 2, killed))
            await run.more(500)
        return run, before, back

    run, before, back = asyncio.run(main())
    whole, rest = truth(root), truth(root, (1, 3))
    say(f"a group killed, whole again after {back:.1f} s:", figures(run.asked[before:]))
    assert not run.errors
    assert run.degraded
    for asked in run.asked:
        found = asked.found
        if found.degraded:
            assert found.coverage.missing == (0, 2)
            assert found.coverage.rows_searched == ROWS // 2
            assert found.matches == rest[asked.query]
        else:
            assert found.matches == whole[asked.query]
    assert not any(asked.found.degraded for asked in run.asked[-200:])
    assert max(asked.seconds for asked in run.asked) < 6


def test_who_wants_all_or_nothing_is_refused_while_a_group_is_gone(service, load, root):
    async def main():
        async with load(allow_partial=False) as run:
            await run.more(200)
            killed = service.pids("ShardGroup-1")
            kill(*killed)
            await run.until(lambda: service.is_whole("ShardGroup-1", 2, killed))
            await run.more(500)
        return run

    run = asyncio.run(main())
    say("a group killed, all or nothing:", run.figures(), dict(run.errors))
    assert set(run.errors) == {"UnavailableError: 2 of 4 shards answered; try again later"}
    assert not run.degraded
    assert not any(asked.error for asked in run.asked[-200:])


def test_no_group_at_all_is_never_an_empty_reply(service, load, root):
    async def main():
        async with load() as run:
            await run.more(200)
            killed = [pid for name in GROUPS for pid in service.pids(name)]
            kill(*killed)
            for name in GROUPS:
                await run.until(lambda name=name: service.is_whole(name, 2, killed))
            await run.more(500)
        return run

    run = asyncio.run(main())
    say("all groups killed:", run.figures(), dict(run.errors))
    assert set(run.errors) <= {"UnavailableError: 0 of 4 shards answered; try again later"}
    for asked in run.asked:
        assert asked.error or len(asked.found.matches) == K
    assert not any(asked.error for asked in run.asked[-200:])
    assert max(asked.seconds for asked in run.asked) < 6


def test_a_replica_that_stops_fails_no_query(service, load):
    async def main():
        async with load() as run:
            await run.more(200)
            before = len(run.asked)
            with stopped(service.pids("ShardGroup-0")[0]):
                await asyncio.sleep(8)
            await run.more(200)
        return run, before

    run, before = asyncio.run(main())
    say("a replica stopped for 8 s:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
    assert sum(asked.seconds > 1 for asked in run.asked) <= 32  # those that met it first


def test_five_versions_go_live_under_load(service, load, root, encoder, model):
    first = IndexFolder(root).read().version

    async def main():
        truths = {first: truth(root)}
        async with load() as run:
            for number in range(1, 6):
                parts = Parts.open(embeddings(root.parent, number, encoder, model), None)
                await asyncio.to_thread(append_parts, IndexFolder(root), parts, Here(root))
                version = IndexFolder(root).read().version
                truths[version] = await asyncio.to_thread(truth, root)
                seen = len(run.asked)
                await run.until(lambda: any(served(a) == version for a in run.asked[seen:]))
                await run.more(200)
        return run, truths

    def served(asked):
        return asked.found and asked.found.version

    run, truths = asyncio.run(main())
    say("five versions gone live:", run.figures())
    assert not run.errors
    assert not run.degraded
    assert {served(asked) for asked in run.asked} == truths.keys()
    assert len(truths) == 6
    for asked in run.asked:
        assert asked.found.matches == truths[served(asked)][asked.query]


def test_the_only_ingress_comes_back_by_itself(service, load):
    async def main():
        async with load(retries=60) as run:
            await run.more(200)
            before = len(run.asked)
            killed = service.pids("Search")
            kill(*killed)
            back = await run.until(lambda: service.is_whole("Search", 1, killed))
            await run.more(500)
        return run, before, back

    run, before, back = asyncio.run(main())
    say(f"the only ingress killed, back after {back:.1f} s:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded


def test_queries_go_on_without_the_controller(service, load):
    async def main():
        async with load() as run:
            await run.more(200)
            killed = service.controller()
            kill(*killed)
            back = await run.until(lambda: set(service.controller()) - set(killed))
            await run.more(500)
            replicas = service.pids("ShardGroup-0")
            kill(replicas[0])
            mended = await run.until(lambda: service.is_whole("ShardGroup-0", 2, replicas[:1]))
        return run, back, mended

    run, back, mended = asyncio.run(main())
    say(f"controller back after {back:.1f} s, it replaces after {mended:.1f} s:", run.figures())
    assert not run.errors
    assert not run.degraded


def test_a_redeployment_fails_no_query(service, load):
    async def main():
        async with load(retries=5) as run:
            await run.more(200)
            killed = service.pids("Search")
            changed = {"text_cache": 100, "search": {"replicas": 2}, "line": {"hedge_s": 0.1}}
            await asyncio.to_thread(service.deploy, **changed)
            took = await run.until(lambda: service.is_whole("Search", 2, killed))
            await run.more(500)
        return run, took

    run, took = asyncio.run(main())
    say("redeployed:", run.figures(), took)
    say(*run.degraded[:2], *run.degraded[-2:])
    assert not run.errors
    assert not run.degraded


def test_a_hedge_hides_a_replica_that_stops(service, load):
    async def main():
        async with load() as run:
            await run.more(200)
            before = len(run.asked)
            with stopped(service.pids("ShardGroup-0")[0]):
                await asyncio.sleep(5)
            await run.more(200)
        return run, before

    run, before = asyncio.run(main())
    say("a replica stopped for 5 s, hedged:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
    assert max(asked.seconds for asked in run.asked) < 1


def test_one_of_two_ingresses_is_not_missed(service, load):
    async def main():
        async with load(retries=5) as run:
            await run.more(200)
            before, killed = len(run.asked), service.pids("Search")[:1]
            kill(*killed)
            await run.until(lambda: service.is_whole("Search", 2, killed))
            await run.more(500)
        return run, before

    run, before = asyncio.run(main())
    say("one of two ingresses killed:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
