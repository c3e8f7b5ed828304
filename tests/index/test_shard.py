"""Segments searched together are one: the law is that no one can tell them apart."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from clipray.errors import DamagedError
from clipray.manifest import IndexFolder, SegmentRecord, ShardRecord
from clipray.matches import Match, Matches
from clipray.segment import new_index, write_segment
from clipray.shard import Shard, merge_batches, row_id
from tests.handmade import random_halves, unit

DIM, ROWS = 16, 90
METHODS = ["Flat", "HNSW32", "SQ8"]


@pytest.fixture(scope="module")
def vectors():
    halves = random_halves(ROWS, DIM)
    halves[60:] = halves[:30]  # ties across segments
    return halves


def write_shard(root, method, vectors, cuts):
    folder = IndexFolder(root)
    records = []
    for number, rows in enumerate(np.split(np.arange(len(vectors)), cuts)):
        keys = [f"s/{row}" for row in rows]
        own = {"odd": [bool(row % 2) for row in rows]} if number else {}
        table = pa.table({"id": [row_id(key) for key in keys], "key": keys, **own})
        index = new_index(method, DIM, len(rows))
        if not index.is_trained:
            index.train(vectors.astype(np.float32))
        files = write_segment(folder.segment(str(number)), index, vectors[rows], table)
        records.append(SegmentRecord(id=str(number), rows=len(rows), files=files))
    return folder, ShardRecord(segments=tuple(records))


@pytest.fixture(scope="module", params=METHODS)
def shards(request, tmp_path_factory, vectors):
    """The same rows as one segment and as three, one of them tiny."""
    root = tmp_path_factory.mktemp("shard")
    one = write_shard(root / "one", request.param, vectors, [])
    three = write_shard(root / "three", request.param, vectors, [3, 50])
    return request.param, Shard.open(*one), Shard.open(*three)


@pytest.fixture(scope="module")
def queries(vectors):
    drawn = np.random.default_rng(1).normal(size=(30, DIM))
    return unit(np.concatenate([drawn, vectors[:5].astype(np.float32)]))


@pytest.mark.parametrize("k", [1, 10, ROWS + 5])
def test_three_segments_answer_as_one(shards, queries, k):
    method, one, three = shards
    pairs = zip(one.search(queries, k, None, ()), three.search(queries, k, None, ()), strict=True)
    recalls = [mine.recall(other) for mine, other in pairs]
    assert np.mean(recalls) == 1 if method == "Flat" else np.mean(recalls) > 0.8


def test_flat_equals_numpy(shards, vectors, queries):
    method, _, three = shards
    if method != "Flat":
        return
    ids = np.array([row_id(f"s/{row}") for row in range(ROWS)])
    for query, matches in zip(queries, three.search(queries, 40, None, ()), strict=True):
        scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((ids, -scores))[:40]
        assert matches.ids == ids[order].tolist()
        assert [match.score for match in matches] == scores[order].tolist()


def test_rows_are_found_in_whichever_segment(shards, vectors):
    _, _, shard = shards
    assert len(shard) == ROWS
    for row in (0, 2, 3, 49, 50, 89):
        np.testing.assert_array_equal(shard.find(f"s/{row}"), vectors[row].astype(np.float32))
        assert shard.row(row_id(f"s/{row}"))["key"] == f"s/{row}"
    assert shard.find("s/90") is None
    assert shard.row(1) is None


def test_segments_may_differ_in_their_columns(shards, vectors):
    _, _, shard = shards
    assert shard.columns == {"odd"}
    assert list(shard.column("odd")) == [(f"s/{row}", bool(row % 2)) for row in range(3, ROWS)]
    query = unit(vectors[2:3].astype(np.float32))
    first, tied = shard.search(query, 2, None, ("odd",))[0]
    assert {match.key: match.columns for match in (first, tied)} == {
        "s/2": {},
        "s/62": {"odd": False},
    }


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "vectors.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_is_told_before_anything_is_opened(tmp_path, vectors, name, damage):
    folder, record = write_shard(tmp_path, "Flat", vectors, [40])
    path = folder.segment("1") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    if damage != "missing":
        path.write_bytes(data if damage == "flipped" else data[:-10])
    with pytest.raises(DamagedError) as caught:
        Shard.open(folder, record)
    assert str(caught.value).startswith(f"{path}: ")


def test_an_id_is_63_bits_of_the_key_for_ever():
    assert row_id("shards/000000000") == 8210508758762185787
    assert row_id("s/🦜") < 2**63
    digest = hashlib.blake2b(b"s/1", digest_size=8).digest()
    assert row_id("s/1") == int.from_bytes(digest, "big") >> 1


def test_batches_merge_query_by_query():
    a, b, c = (Match(number, "k", score) for number, score in ((1, 0.9), (2, 0.8), (3, 0.7)))
    merged = merge_batches([[Matches((b,)), Matches((a,))], [Matches((a, c)), Matches()]], 2)
    assert merged == [Matches((a, b)), Matches((a,))]
