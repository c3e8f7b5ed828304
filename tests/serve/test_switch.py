"""Versions are gone over to under load: no reply fails, none mixes two."""

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from clipray.embeddings import Parts
from clipray.errors import StaleError, UnavailableError
from clipray.index.appending import append_parts
from clipray.index.compaction import compact
from clipray.index.manifest import IndexFolder
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted
from clipray.index.workers import Here
from clipray.serve.catalog import ServedFolder
from clipray.serve.fanout import Ask
from tests.handmade import build_index, random_halves, write_embeddings
from tests.serve.inprocess import Groups, truths

DIM, K = 16, 5
WANTED = Wanted(K, columns=("caption",))
RAW = np.random.default_rng(5).normal(size=(8, DIM)).astype(np.float32)
QUERIES = unit_queries(RAW, DIM)


def embeddings(folder, number, rows=60):
    """Keys that repeat from number to number, with other vectors and captions."""
    vectors = random_halves(rows, DIM, seed=number)
    keys = [f"s/{row}" for row in range(rows)]
    captions = {0: {"caption": pa.array([f"{key} of {number}" for key in keys])}}
    return write_embeddings(folder / f"emb{number}", [(keys, vectors)], captions)


@pytest.fixture
def root(tmp_path):
    build_index(tmp_path / "index", embeddings(tmp_path, 0), shards=3)
    return tmp_path / "index"


def append(root, number):
    folder = IndexFolder(root)
    append_parts(folder, Parts.open(embeddings(root.parent, number), None), Here(root))


def test_five_versions_go_live_under_load(root):
    async def main():
        service = Groups({"a": root}, 2, replicas=2)
        switch = service.switch()
        truth = {1: truths(root, RAW, K)}
        replies, done = [], asyncio.Event()

        async def client(number):
            while not done.is_set():
                folder = switch.catalog.folders[0]
                query = number % len(QUERIES)
                answer = await service.fanout.search(Ask(folder, WANTED, QUERIES[query]))
                replies.append((folder.version, query, answer))

        clients = [asyncio.ensure_future(client(number)) for number in range(16)]
        for number in range(1, 6):
            await asyncio.to_thread(append, root, number)
            version = IndexFolder(root).read().version
            truth[version] = await asyncio.to_thread(truths, root, RAW, K)
            await switch.look()
            assert switch.catalog.folders[0].version == version
            await asyncio.sleep(0.05)
        done.set()
        await asyncio.gather(*clients)
        return replies, truth

    replies, truth = asyncio.run(main())
    assert {version for version, _, _ in replies} == {1, 2, 3, 4, 5, 6}
    for version, query, answer in replies:
        assert answer.matches == truth[version][query]
        assert not answer.coverage.degraded


def test_a_damaged_version_is_not_gone_over_to_until_it_is_mended(root):
    async def main():
        service = Groups({"a": root}, 2)
        switch = service.switch()
        append(root, 1)
        newest = IndexFolder(root).read()
        path = root / "segments" / newest.shards[0].segments[-1].id / "vectors.npy"
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        await switch.look()
        assert switch.catalog.folders[0].version == 1
        (why,) = switch.failures.values()
        assert str(path) in why
        path.write_bytes(whole)
        await switch.look()
        assert switch.catalog.folders[0].version == newest.version
        assert not switch.failures

    asyncio.run(main())


def damage(root):
    """Change one bit of the newest segment; returns its shard's number and what mends it."""
    newest = IndexFolder(root).read()
    known = {segment.id for shard in IndexFolder(root).read(1).shards for segment in shard.segments}
    number, segment = next(
        (number, segment)
        for number, shard in enumerate(newest.shards)
        for segment in shard.segments
        if segment.id not in known
    )
    path = root / "segments" / segment.id / "vectors.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    return number, lambda: path.write_bytes(whole)


def test_the_old_version_stays_open_everywhere_while_one_group_cannot_open_the_new_one(
    root, monkeypatch
):
    monkeypatch.setattr("clipray.serve.replicas.LINGER_S", 0.0)

    async def main():
        service = Groups({"a": root}, 3)
        switch = service.switch()
        append(root, 1)
        _, mend = damage(root)
        await switch.look()
        await asyncio.sleep(0.05)  # whoever let go of it has done so
        ask = Ask(switch.catalog.folders[0], WANTED, QUERIES[0])
        assert not (await service.fanout.search(ask)).coverage.degraded
        mend()
        await switch.look()
        await asyncio.sleep(0.05)
        with pytest.raises(UnavailableError, match="version 1 is not open here"):
            await service.fanout.search(ask)

    asyncio.run(main())


def test_a_replica_that_begins_with_a_damaged_version_opens_the_served_one_as_well(root):
    async def main():
        service = Groups({"a": root}, 3)
        switch = service.switch()
        append(root, 1)
        damage(root)
        for group in service.groups:
            group.replicas = [group.make()]
        ask = Ask(switch.catalog.folders[0], WANTED, QUERIES[0])
        with pytest.raises(UnavailableError, match="version 1 is not open here"):
            await service.fanout.search(ask)
        await switch.look(again=True)
        assert switch.catalog.folders[0].version == 1
        assert not (await service.fanout.search(ask)).coverage.degraded

    asyncio.run(main())


def test_those_who_wait_for_a_look_share_it(root):
    async def main():
        service = Groups({"a": root}, 1)
        switch, (group,) = service.switch(), service.groups
        opened, group.opened = group.open, 0

        async def open_slowly(folder):
            group.opened += 1
            await asyncio.sleep(0.05)
            return await opened(folder)

        group.open = open_slowly
        first = asyncio.ensure_future(switch.look(again=True))
        await asyncio.sleep(0.01)
        await asyncio.gather(first, *[switch.look(again=True) for _ in range(50)])
        assert group.opened == 2  # what they saw may be younger than the first

    asyncio.run(main())


def test_groups_that_start_late_are_waited_for(root, monkeypatch):
    monkeypatch.setattr("clipray.serve.switch.BEGIN_S", 0.01)

    async def main():
        service = Groups({"a": root}, 2)
        switch, late = service.switch(), service.groups[1]
        opened, tries = late.open, []

        async def starting(folder):
            tries.append(folder)
            if len(tries) < 3:
                raise UnavailableError("no replica yet")
            return await opened(folder)

        late.open = starting
        await switch.begin()
        assert len(tries) == 3
        assert "caption" in switch.catalog.folders[0].columns

    asyncio.run(main())


def test_another_number_of_shards_goes_live(root):
    async def main():
        service = Groups({"a": root}, 2)
        switch = service.switch()
        compact(IndexFolder(root), Here(root), shards=7)
        await switch.look()
        (folder,) = switch.catalog.folders
        assert len(folder.shards) == 7
        answer = await service.fanout.search(Ask(folder, WANTED, QUERIES[0]))
        assert answer.coverage.rows_searched == 60
        assert answer.matches == truths(root, RAW[:1], K)[0]

    asyncio.run(main())


def test_a_replica_that_starts_late_begins_with_the_newest_version(root):
    async def main():
        service = Groups({"a": root}, 1)
        append(root, 1)
        late = service.groups[0].make()
        manifest = IndexFolder(root).read()
        rows = await late.rows(ServedFolder.of("a", root, manifest).piece([0, 1, 2]), [])
        assert rows == {}
        service.groups[0].replicas = [late]
        folder = service.catalog.folders[0]  # the ingress has not gone over yet
        with pytest.raises(UnavailableError, match="version 1 is not open here"):
            await service.fanout.search(Ask(folder, WANTED, QUERIES[0]))
        switch = service.switch()
        await switch.look(again=True)
        answer = await service.fanout.search(Ask(switch.catalog.folders[0], WANTED, QUERIES[0]))
        assert answer.matches == truths(root, RAW[:1], K)[0]

    asyncio.run(main())


def test_an_index_that_is_gone_stays_served(root):
    async def main():
        service = Groups({"a": root}, 1)
        switch = service.switch()
        (root / "manifests").rename(root / "elsewhere")
        await switch.look()
        assert switch.failures
        answer = await service.fanout.search(Ask(switch.catalog.folders[0], WANTED, QUERIES[0]))
        assert len(answer.matches) == K

    asyncio.run(main())


def test_a_group_without_a_replica_keeps_the_old_version_until_it_is_back(root):
    async def main():
        service = Groups({"a": root}, 2)
        switch = service.switch()
        append(root, 1)
        there, service.groups[1].replicas = service.groups[1].replicas, []
        await switch.look()
        assert switch.catalog.folders[0].version == 1
        assert "ShardGroup-1 has no replica" in switch.failures["a/image"]
        service.groups[1].replicas = there
        await switch.look()
        assert switch.catalog.folders[0].version == 2
        assert switch.catalog.folders[0].columns == ("caption",)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("groups", "dealt", "missing"), [(3, 1, ()), (3, 2, ()), (1, 3, (1, 2)), (2, 3, (2,))]
)
def test_groups_that_were_dealt_other_shards_answer_for_those_asked_for(
    root, groups, dealt, missing
):
    """As while a service is deployed anew with another number of groups."""

    async def main():
        service, made = Groups({"a": root}, groups), Groups({"a": root}, dealt)
        for old, new in zip(service.groups, made.groups, strict=False):
            old.replicas = new.replicas
        (folder,) = service.catalog.folders
        answer = await service.fanout.search(Ask(folder, Wanted(60), QUERIES[0]))
        assert answer.coverage.missing == missing
        assert len(set(answer.matches.ids)) == len(answer.matches.ids)
        assert len(answer.matches) == answer.coverage.rows_searched
        keys = ["s/0", "s/1", "s/2", "s/3"]
        if missing:
            with pytest.raises(StaleError, match="are not here"):
                await service.fanout.each(folder, "find", keys[0])
        else:
            found = [(await service.fanout.each(folder, "find", key))[0] for key in keys]
            assert all(any(vector is not None for vector in vectors) for vectors in found)

    asyncio.run(main())


def test_a_group_over_another_folder_of_the_same_name_is_not_asked(root, tmp_path):
    """As while a service is deployed anew with an index that was built again elsewhere."""
    other = tmp_path / "again"
    build_index(other, embeddings(tmp_path, 7), shards=3)

    async def main():
        service, made = Groups({"a": root}, 1), Groups({"a": other}, 1)
        service.groups[0].replicas = made.groups[0].replicas
        ask = Ask(service.catalog.folders[0], WANTED, QUERIES[0])
        with pytest.raises(StaleError, match=f"a/image at {root}, version 1 is not open"):
            await service.fanout.search(ask)
        await service.switch().look(again=True)
        assert (await service.fanout.search(ask)).matches == truths(root, RAW[:1], K)[0]
        ask = Ask(made.catalog.folders[0], WANTED, QUERIES[0])
        assert (await made.fanout.search(ask)).matches == truths(other, RAW[:1], K)[0]

    asyncio.run(main())
