"""The fan-out equals one search over everything, and says what it could not search."""

import asyncio
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.errors import UnavailableError
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted
from clipray.serve.fanout import Ask
from clipray.serve.line import LineOptions
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings
from tests.serve.inprocess import QUICK, Groups

ROWS, SHARDS, DIM = 300, 5, 16
WANTED = Wanted(10, columns=("caption",))


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Five shards; a third of the rows stands twice, so that scores tie."""
    folder = tmp_path_factory.mktemp("fanout")
    vectors = random_halves(ROWS, DIM)
    vectors[200:] = vectors[:100]
    parts = cut_parts(vectors, SHARDS)
    captions = {
        n: {"caption": pa.array([f"of {key}" for key in keys])} for n, (keys, _) in enumerate(parts)
    }
    build_index(folder / "index", write_embeddings(folder / "emb", parts, captions), shards=SHARDS)
    return folder / "index"


def queries(count, seed=1):
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


async def ask_all(service, vectors, wanted=WANTED):
    (folder,) = service.catalog.folders
    units = unit_queries(vectors, DIM)
    asks = [service.fanout.search(Ask(folder, wanted, vector)) for vector in units]
    return await asyncio.gather(*asks)


@settings(max_examples=150, deadline=None)
@given(
    groups=st.integers(1, SHARDS),
    k=st.sampled_from([1, 3, 10, ROWS, 1000]),
    seed=st.integers(0, 1000),
    narrow=st.booleans(),
)
def test_groups_together_find_what_one_index_finds(root, served, groups, k, seed, narrow):
    tree = {"caption": {"$contains": "7"}} if narrow else None
    vectors = queries(3, seed)
    wanted = replace(WANTED, k=k, filter=tree)
    answers = asyncio.run(ask_all(served(groups), vectors, wanted))
    alone = Index.open(root, verify=False).search(vectors, k, filter=tree, columns=("caption",))
    assert [answer.matches for answer in answers] == alone
    assert all(not answer.coverage.degraded for answer in answers)


@pytest.fixture(scope="module")
def served(root):
    made = {}

    def of(groups):
        if groups not in made:
            made[groups] = Groups({"a": root}, groups)
        made[groups].fanout = type(made[groups].fanout)(  # its coalescer belongs to one loop
            made[groups].lines, made[groups].specs, made[groups].batches.append
        )
        return made[groups]

    return of


def test_queries_that_wait_together_cost_one_call_a_group(root):
    async def main():
        service = Groups({"a": root}, 2)
        (folder,) = service.catalog.folders
        asks = [
            Ask(folder, replace(WANTED, k=1 + n % 3), vector)
            for n, vector in enumerate(queries(60))
        ]
        found = await asyncio.gather(*[service.fanout.search(ask) for ask in asks])
        assert [len(answer.matches) for answer in found] == [1 + n % 3 for n in range(60)]
        return service

    service = asyncio.run(main())
    assert service.batches == [60]
    assert [group.calls for group in service.groups] == [1, 1]


def test_a_group_that_is_away_is_missing_from_the_coverage(root):
    async def main():
        service = Groups({"a": root}, 2, options=LineOptions(deadline_s=3, patience_s=0.05))
        service.groups[1].down = {0}
        began = time.perf_counter()
        (first,) = await ask_all(service, queries(1))
        slow = time.perf_counter() - began
        again = await ask_all(service, queries(200))
        quick = time.perf_counter() - began - slow
        service.groups[1].down.clear()
        await ask_all(service, queries(1))
        await asyncio.sleep(0.1)  # a trial is made beside the query
        (healed,) = await ask_all(service, queries(1))
        return first, again, healed, slow, quick

    first, again, healed, slow, quick = asyncio.run(main())
    assert first.coverage.missing == (1, 3)
    assert first.coverage.rows_searched == 180
    assert first.coverage.rows_total == ROWS
    assert all(answer.coverage.missing == (1, 3) for answer in again)
    assert slow < 6
    assert quick < 3  # not another deadline
    assert not healed.coverage.degraded


def test_what_the_groups_that_are_left_know_of_a_row_is_told(root):
    async def main():
        service = Groups({"a": root}, 2, options=QUICK)
        (folder,) = service.catalog.folders
        whole, nobody = await service.fanout.each(folder, "find", "s/0")
        service.groups[1].down = {0}
        part, lost = await service.fanout.each(folder, "find", "s/0")
        return whole, nobody, part, lost

    whole, nobody, part, lost = asyncio.run(main())
    assert nobody is None
    assert len(whole) == 2
    assert len(part) == 1
    assert isinstance(lost, UnavailableError)


def test_one_of_two_replicas_may_die_at_any_time(root):
    async def main():
        service = Groups({"a": root}, 2, replicas=2)
        for group in service.groups:
            group.down = {0}
        return [await ask_all(service, queries(20, seed)) for seed in range(20)]

    answers = asyncio.run(main())
    assert not any(answer.coverage.degraded for batch in answers for answer in batch)


def test_a_search_that_fails_takes_no_group_down(root, monkeypatch):
    def fail(job):
        raise RuntimeError("out of luck")

    service = Groups({"a": root}, 2)
    monkeypatch.setattr(service.groups[1].replicas[0]._holding, "search", fail)
    (answer,) = asyncio.run(ask_all(service, queries(1)))
    assert answer.coverage.missing == (1, 3)
    assert service.lines[1].up
    assert service.groups[1].calls == 1


def test_a_damaged_shard_is_left_out_and_told(root, tmp_path):
    copy = tmp_path / "index"
    parts = cut_parts(random_halves(ROWS, DIM), SHARDS)
    build_index(copy, write_embeddings(tmp_path / "emb", parts), shards=SHARDS)
    segment = IndexFolder(copy).read().shards[3].segments[0]
    path = copy / "segments" / segment.id / "vectors.npy"
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    path.write_bytes(damaged)
    service = Groups({"a": copy}, 2)
    (answer,) = asyncio.run(ask_all(service, queries(1)))
    assert answer.coverage.missing == (3,)
    assert len(answer.matches) == 10
