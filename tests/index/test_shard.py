"""Segments searched together are one: the law is that no one can tell them apart."""

import hashlib
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.errors import DamagedError
from clipray.index.deletions import Doomed, mark_shard
from clipray.index.exact import MANY_QUERIES
from clipray.index.segment import Hit
from clipray.index.shard import Shard, Wanted, merge_batches, search_shards
from clipray.index.table import row_id
from clipray.matches import Match, Matches
from tests.handmade import (
    brute_force,
    clustered_halves,
    found,
    keys_ids,
    make_segment,
    random_halves,
    row_table,
    unit,
    write_shard,
)

DIM, ROWS = 16, 90
METHODS = ["Flat", "HNSW32", "SQ8"]
FILTERS = [None, {"n": {"$lt": 50}}, {"n": 3}, {"n": -1}, {"$not": {"even": True}}]


def pieces(vectors, cuts):
    """Vectors and rows of some segments; all but the first have a column."""
    for number, rows in enumerate(np.split(np.arange(len(vectors)), cuts)):
        own = {"odd": [bool(row % 2) for row in rows]} if number else {}
        yield vectors[rows], row_table([f"s/{row}" for row in rows], **own)


@pytest.fixture(scope="module")
def vectors():
    halves = random_halves(ROWS, DIM)
    halves[60:] = halves[:30]  # ties across segments
    return halves


@pytest.fixture(scope="module", params=METHODS)
def shards(request, tmp_path_factory, vectors):
    """The same rows as one segment and as three, one of them tiny."""
    root = tmp_path_factory.mktemp("shard")
    one = write_shard(root / "one", pieces(vectors, []), request.param)
    three = write_shard(root / "three", pieces(vectors, [3, 50]), request.param)
    return request.param, Shard.open(*one), Shard.open(*three)


@pytest.fixture(scope="module")
def queries(vectors):
    drawn = np.random.default_rng(1).normal(size=(30, DIM))
    return unit(np.concatenate([drawn, vectors[:5].astype(np.float32)]))


def drawn_rows(rng, rows, distinct, dim):
    """Rows of which many are equal or nearly so."""
    pool = unit(rng.normal(size=(distinct, dim))).astype(np.float16)
    vectors = pool[rng.integers(0, distinct, rows)]
    nudged = rng.random(rows) < 0.3
    vectors[nudged, 0] = np.nextafter(vectors[nudged, 0], np.float16(2))
    columns = {"n": rng.integers(0, 100, rows), "even": rng.random(rows) < 0.5}
    return SimpleNamespace(vectors=vectors, ids=rng.permutation(rows).astype(np.int64), **columns)


def drawn_deaths(rng, drawn, numbers, share):
    """Dead rows, some of which have come again, under the same id, in another segment."""
    dead = rng.random(len(numbers)) < share
    ids = drawn.ids.copy()
    for number in set(numbers[dead].tolist()):
        old = np.flatnonzero(dead & (numbers == number))
        new = np.flatnonzero(~dead & (numbers != number))
        count = min(len(old), len(new)) // 2
        drawn.ids[old[:count]] = ids[rng.permutation(new)[:count]]
    return dead


def passing(drawn, tree):
    """(rows,) bool, without the code that is tested."""
    masks = (None, drawn.n < 50, drawn.n == 3, drawn.n == -1, ~drawn.even)
    return np.ones(len(drawn.n), bool) if tree is None else masks[FILTERS.index(tree)]


def open_shards(folder, drawn, numbers, dead, shards):
    """Segments by their numbers, dealt out to shards."""
    opened = [[] for _ in range(shards)]
    for number in range(numbers.max(initial=-1) + 1):
        mine = numbers == number
        rows = row_table(
            [f"s/{row}" for row in drawn.ids[mine]],
            drawn.ids[mine],
            n=drawn.n[mine],
            even=drawn.even[mine],
        )
        gone = dead[mine] if dead[mine].any() else None
        segment = make_segment(folder / str(number), drawn.vectors[mine], rows, dead=gone)
        opened[number % shards].append(segment)
    return [Shard(segments) for segments in opened]


@settings(max_examples=1000, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    shards=st.integers(1, 3),
    distinct=st.sampled_from([1, 8, 1000]),
    dead=st.sampled_from([0, 0, 0.3, 0.9, 1]),
    tree=st.sampled_from(FILTERS),
    count=st.sampled_from([1, 2, MANY_QUERIES]),
    k=st.sampled_from([1, 5, 30, 300]),
)
def test_flat_is_brute_force(tmp_path_factory, seed, sizes, shards, distinct, dead, tree, count, k):
    rng = np.random.default_rng(seed)
    drawn = drawn_rows(rng, sum(sizes), distinct, dim=8)
    numbers = np.repeat(np.arange(len(sizes)), sizes)
    gone = drawn_deaths(rng, drawn, numbers, dead)
    opened = open_shards(tmp_path_factory.mktemp("flat"), drawn, numbers, gone, shards)
    queries = unit(rng.normal(size=(count, 8)))
    allowed = ~gone & passing(drawn, tree)
    answers = search_shards(opened, queries, Wanted(k, filter=tree, columns=("n",)))
    assert len(answers) == count
    for query, matches in zip(queries, answers, strict=True):
        expected = brute_force(drawn.vectors, drawn.ids, query, k, allowed)
        assert found(matches) == expected
        assert [match.key for match in matches] == [f"s/{row}" for row in expected[0]]


@pytest.mark.parametrize("k", [1, 10, ROWS + 5])
def test_three_segments_answer_as_one(shards, queries, k):
    method, one, three = shards
    pairs = zip(one.search(queries, Wanted(k)), three.search(queries, Wanted(k)), strict=True)
    recalls = [mine.recall(other) for mine, other in pairs]
    assert np.mean(recalls) == 1 if method == "Flat" else np.mean(recalls) > 0.8


def test_a_shard_tells_places_and_their_filling_tells_rows(shards, vectors, queries):
    _, _, three = shards
    places = three.search(queries, Wanted(7))
    filled = search_shards([three], queries, Wanted(7, columns=("odd", "key"), vectors=True))
    for hits, matches in zip(places, filled, strict=True):
        assert found(hits) == found(matches)
        assert all(isinstance(hit, Hit) and not hit.key for hit in hits)
        for match in matches:
            row = int(match.key.removeprefix("s/"))
            assert match.id == row_id(match.key)
            assert match.columns == ({"odd": bool(row % 2)} if row > 2 else {})
            assert match.vector.dtype == np.float32
            np.testing.assert_array_equal(match.vector, vectors[row].astype(np.float32))


def test_a_threshold_cuts_and_changes_nothing_else(shards, queries):
    _, one, three = shards
    for query in queries[:5]:
        (plain,) = search_shards([one, three], query[None], Wanted(50))
        limit = plain.items[4].score
        (cut,) = search_shards([one, three], query[None], Wanted(50, limit))
        assert cut == plain.above(limit)
        assert len(cut) >= 5
        assert len(search_shards([one], query[None], Wanted(50, 1.5))[0]) == 0


def test_exact_is_exact_whatever_the_method(shards, vectors, queries):
    _, _, three = shards
    ids = keys_ids(ROWS)
    answers = three.search(queries, Wanted(40, exact=True))
    for query, matches in zip(queries, answers, strict=True):
        assert found(matches) == brute_force(vectors, ids, query, 40)


def test_no_shard_and_no_segment_answer_with_nothing(queries):
    assert search_shards([], queries, Wanted()) == [Matches()] * len(queries)
    assert search_shards([Shard([])], queries, Wanted()) == [Matches()] * len(queries)
    assert len(Shard([])) == 0
    assert Shard([]).find("s/1") is Shard([]).row(1) is None


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
    first, tied = search_shards([shard], query, Wanted(2, columns=("odd",)))[0]
    assert {match.key: match.columns for match in (first, tied)} == {
        "s/2": {},
        "s/62": {"odd": False},
    }
    (odd,) = search_shards([shard], query, Wanted(ROWS, filter={"odd": True}))
    assert sorted(match.key for match in odd) == sorted(f"s/{row}" for row in range(3, ROWS, 2))


def test_the_dead_are_gone_from_everything(tmp_path, vectors, queries):
    folder, record = write_shard(tmp_path, pieces(vectors, [3, 50]))
    gone = [0, 49, 50, 89]
    marked = mark_shard(tmp_path, record, Doomed(ids=keys_ids(ROWS)[gone])).shard
    shard = Shard.open(folder, marked)
    assert len(shard) == ROWS - 4
    assert all(shard.find(f"s/{row}") is None for row in gone)
    assert all(shard.row(row_id(f"s/{row}")) is None for row in gone)
    kept = {f"s/{row}" for row in range(ROWS) if row not in gone}
    assert {key for key, _ in shard.column("odd")} == kept - {"s/1", "s/2"}
    for matches in search_shards([shard], queries, Wanted(ROWS)):
        assert {match.key for match in matches} == kept


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "vectors.npy", "ids.npy"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_is_told_before_anything_is_opened(tmp_path, vectors, name, damage):
    folder, record = write_shard(tmp_path, pieces(vectors, [40]), "HNSW32")
    path = folder.segment("1") / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.unlink()
    if damage != "missing":
        path.write_bytes(data if damage == "flipped" else data[:-10])
    with pytest.raises(DamagedError) as caught:
        Shard.open(folder, record)
    assert str(caught.value).startswith(f"{path}: ")


def test_deletions_are_verified_as_well(tmp_path, vectors):
    folder, record = write_shard(tmp_path, pieces(vectors, []))
    marked = mark_shard(tmp_path, record, Doomed(ids=keys_ids(5))).shard
    deletions = marked.segments[0].deletions
    path = folder.deletions / deletions.name
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DamagedError, match=r"npy: its sha256"):
        Shard.open(folder, marked)
    path.write_bytes(whole)
    wrong = marked.segments[0].model_copy(
        update={"deletions": deletions.model_copy(update={"rows": 6})}
    )
    with pytest.raises(DamagedError, match="5 rows are dead in it, its manifest says 6"):
        Shard.open(folder, marked.model_copy(update={"segments": (wrong,)}))


def test_tuning_reaches_all_segments(tmp_path):
    vectors, _ = clustered_halves(20, 100, DIM)
    folder, record = write_shard(tmp_path, pieces(vectors, [1000]), "IVF64,Flat")
    shard = Shard.open(folder, record)
    queries = unit(np.random.default_rng(3).normal(size=(20, DIM)))
    truth = shard.search(queries, Wanted(exact=True))
    recalls = []
    for nprobe in (1, 64):
        shard.tuned(shard.segments[0].approximate.settings.model_copy(update={"nprobe": nprobe}))
        found = shard.search(queries, Wanted())
        recalls.append(np.mean([f.recall(t) for f, t in zip(found, truth, strict=True)]))
    assert recalls[0] < 0.9
    assert recalls[1] == 1


def test_an_id_is_63_bits_of_the_key_for_ever():
    assert row_id("shards/000000000") == 8210508758762185787
    assert row_id("s/🦜") < 2**63
    digest = hashlib.blake2b(b"s/1", digest_size=8).digest()
    assert row_id("s/1") == int.from_bytes(digest, "big") >> 1


def test_batches_merge_query_by_query():
    a, b, c = (Match(number, "k", score) for number, score in ((1, 0.9), (2, 0.8), (3, 0.7)))
    merged = merge_batches([[Matches((b,)), Matches((a,))], [Matches((a, c)), Matches()]], 2)
    assert merged == [Matches((a, b)), Matches((a,))]
