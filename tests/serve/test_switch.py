"""Versions are gone over to under load: no reply fails, none mixes two."""

import asyncio

import numpy as np
import pyarrow as pa
import pytest

from clipray.embeddings import Parts
from clipray.errors import UnavailableError
from clipray.index.appending import append_parts
from clipray.index.compaction import compact
from clipray.index.manifest import IndexFolder
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted
from clipray.index.workers import Here
from clipray.serve.fanout import Ask
from clipray.serve.line import LineOptions
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
        service = Groups({"a": root}, 2, replicas=2, options=LineOptions())
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
        rows = await late.rows("a/image", manifest.version, [])
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
