"""The service on a real Ray under load, while its processes are killed, stopped and replaced."""

import asyncio
import json
import time
from collections import Counter
from functools import partial

import numpy as np
import pytest
from ray import serve

from clipray.client import AsyncClient
from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.manifest import IndexFolder
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted, search_shards
from clipray.index.workers import Here
from clipray.manifest import ModelSource
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings
from tests.processes import kill
from tests.serve.deployed import Deployed, controllers, is_whole, replicas, stopped
from tests.serve.load import Load, figures, flood, median

pytestmark = [pytest.mark.soak, pytest.mark.usefixtures("ray_session")]

DIM, K, ROWS, SHARDS = 32, 5, 2000, 4
QUERIES = np.random.default_rng(5).normal(size=(64, DIM)).astype(np.float32)
TWO, HEDGED = {"replicas": 2}, {"hedge_s": 0.1}
CHANGED = {"search": TWO, "line": HEDGED, "verify": False, "decode": "fast"}  # all deployments
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
    named = [[f"{key} of {number}" for key in keys] for keys, _ in parts]
    captions = {at: {"caption": names} for at, names in enumerate(named)}
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


def all_whole(without):
    return all(is_whole(name, 2, without) for name in GROUPS)


def truth(root, shards=range(SHARDS)):
    """What each query finds in some shards."""
    index = Index.open(root)
    return search_shards([index._shards[n] for n in shards], unit_queries(QUERIES, DIM), WANTED)


def test_a_replica_killed_again_and_again_fails_no_query(service, load, root):
    async def main():
        async with load() as run:
            await run.more(200)
            for _ in range(3):
                killed = [replicas(name)[0] for name in GROUPS]  # the others are new
                kill(killed)
                await run.until(partial(all_whole, killed))
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
            before, killed = len(run.asked), replicas("ShardGroup-0")
            kill(killed)
            back = await run.until(lambda: is_whole("ShardGroup-0", 2, killed))
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
            killed = replicas("ShardGroup-1")
            kill(killed)
            await run.until(lambda: is_whole("ShardGroup-1", 2, killed))
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
            killed = [replica for name in GROUPS for replica in replicas(name)]
            kill(killed)
            await run.until(lambda: all_whole(killed))
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
            with stopped(replicas("ShardGroup-0")[0]):
                await asyncio.sleep(8)
            await run.more(200)
        return run, before

    run, before = asyncio.run(main())
    say("a replica stopped for 8 s:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
    assert 0 < sum(asked.seconds > 1 for asked in run.asked) <= 32  # those that met it first


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
                await run.until(partial(is_served, run, version))
                await run.more(200)
        return run, truths

    def is_served(run, version):
        return any(served(asked) == version for asked in run.asked[-16:])

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


def test_an_overload_is_refused_and_over_when_it_ends(service, load):
    body = json.dumps([{"embedding": query.tolist(), "k": K} for query in QUERIES[:16]])

    async def main():
        async with load(at_once=8) as run:
            await run.more(400)
        usual_s = median(run.asked[100:])
        warm = await flood(service.url, body, 400, 4)
        before_mb = replicas("Search")[0].memory_mb
        answered = warm + await flood(service.url, body, 400, 10)
        after_mb, ended = replicas("Search")[0].memory_mb, time.monotonic()
        async with load(at_once=8) as run:
            await run.until(lambda: recovered(run, usual_s))
        return answered, after_mb / before_mb - 1, time.monotonic() - ended

    def recovered(run, usual_s):
        return len(run.asked) > 50 and median(run.asked[-50:]) < 1.5 * usual_s + 0.005

    answered, growth, recovered_s = asyncio.run(main())
    statuses = Counter(one.status for one in answered)
    slowest = max(one.seconds for one in answered)
    say(f"400 clients at 64 places: {dict(statuses)}, slowest {slowest:.1f} s,")
    say(f"memory {growth:+.1%}, recovered in {recovered_s:.1f} s")
    assert statuses.keys() <= {200, 429, 503}
    assert min(statuses[200], statuses[429]) > 0
    assert all(one.retry_after for one in answered if one.status != 200)
    assert growth < 0.1
    assert recovered_s < 5


def test_the_only_ingress_comes_back_by_itself(service, load):
    async def main():
        async with load(retries=60) as run:
            await run.more(200)
            before = len(run.asked)
            killed = replicas("Search")
            kill(killed)
            back = await run.until(lambda: is_whole("Search", 1, killed))
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
            (killed,) = controllers()
            kill([killed])
            back = await run.until(lambda: any(c.pid != killed.pid for c in controllers()))
            await run.more(500)
            one = replicas("ShardGroup-0")[:1]
            kill(one)
            mended = await run.until(lambda: is_whole("ShardGroup-0", 2, one))
        return run, back, mended

    run, back, mended = asyncio.run(main())
    say(f"controller back after {back:.1f} s, it replaces after {mended:.1f} s:", run.figures())
    assert not run.errors
    assert not run.degraded


def test_a_text_waits_for_an_encoder_that_is_replaced_and_a_vector_does_not(service, load):
    async def main():
        async with load() as run, AsyncClient(service.url, retries=0) as client:
            await client.search("before")
            kill(replicas("Encoder"))
            found = [client.search(text) for text in ("a ring", "a cross")]
            began = time.monotonic()
            found = await asyncio.gather(*found)
            return run, found, time.monotonic() - began

    run, found, waited = asyncio.run(main())
    say(f"encoder killed, texts waited {waited:.1f} s, vectors meanwhile:", run.figures())
    assert [len(one.matches) for one in found] == [10, 10]
    assert not run.errors
    assert max(asked.seconds for asked in run.asked) < 1


def test_a_redeployment_fails_no_query(service, load):
    async def main():
        async with load(retries=5) as run:
            await run.more(200)
            old = replicas("Search")
            await asyncio.to_thread(service.deploy, **CHANGED)
            await run.until(lambda: is_whole("Search", 2, old))
            await run.more(500)
        return run

    run = asyncio.run(main())
    say("redeployed:", run.figures())
    assert not run.errors
    assert not run.degraded


def test_a_hedge_hides_a_replica_that_stops(service, load):
    service.deploy(line=HEDGED)

    async def main():
        async with load() as run:
            await run.more(200)
            before = len(run.asked)
            with stopped(replicas("ShardGroup-0")[0]):
                await asyncio.sleep(5)
            await run.more(200)
        return run, before

    run, before = asyncio.run(main())
    say("a replica stopped for 5 s, hedged:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
    assert max(asked.seconds for asked in run.asked) < 1


def test_one_of_two_ingresses_is_not_missed(service, load):
    service.deploy(search=TWO)

    async def main():
        async with load(retries=5) as run:
            await run.more(200)
            before, killed = len(run.asked), replicas("Search")[:1]
            kill(killed)
            await run.until(lambda: is_whole("Search", 2, killed))
            await run.more(500)
        return run, before

    run, before = asyncio.run(main())
    say("one of two ingresses killed:", figures(run.asked[before:]))
    assert not run.errors
    assert not run.degraded
