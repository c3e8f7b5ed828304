"""One contract for every method, and exactness for Flat."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.errors import ConfigError, DamagedError
from clipray.segment import (
    INDEX_FILE,
    ROWS_FILE,
    Segment,
    new_index,
    read_columns,
    read_faiss,
    write_segment,
)
from clipray.shard import row_id

DIM, ROWS = 32, 400
METHODS = ["Flat", "IVF", "HNSW32", "PQ16x4", "IVF8,SQ8,RFlat"]


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def table(ids):
    captions = [None if i % 7 == 0 else f"caption {i}" for i in range(len(ids))]
    keys = [f"s/{i}" for i in range(len(ids))]
    return pa.table({"id": pa.array(ids, pa.int64()), "key": keys, "caption": captions})


def write(folder, method, vectors, ids):
    index = new_index(method, vectors.shape[1], len(vectors))
    if not index.is_trained:
        index.train(vectors.astype(np.float32))
    return write_segment(folder, index, vectors, table(ids))


def exact(vectors, ids, query, k):
    """Ids and scores by brute force in numpy."""
    scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
    order = np.lexsort((ids, -scores))[:k]
    return ids[order].tolist(), scores[order].tolist()


def found(matches):
    return matches.ids, [match.score for match in matches]


@pytest.fixture(scope="module")
def vectors():
    return unit(np.random.default_rng(1).normal(size=(ROWS, DIM))).astype(np.float16)


@pytest.fixture(scope="module")
def ids():
    return np.array([row_id(f"s/{i}") for i in range(ROWS)])


@pytest.fixture(scope="module", params=METHODS)
def segment(request, tmp_path_factory, vectors, ids):
    folder = tmp_path_factory.mktemp("segment") / "one"
    write(folder, request.param, vectors, ids)
    return Segment(folder)


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(2).normal(size=(20, DIM)))


def test_every_row_finds_itself(segment, vectors, ids):
    results = segment.search(unit(vectors.astype(np.float32)), 1, None, ())
    assert [matches.ids[0] for matches in results] == ids.tolist()


def test_scores_are_the_exact_dot_products(segment, vectors, ids, queries):
    place = {row: number for number, row in enumerate(ids.tolist())}
    for query, matches in zip(queries, segment.search(queries, 30, None, ()), strict=True):
        for match in matches:
            stored = vectors[place[match.id]].astype(np.float64)
            assert match.score == float(np.float32(stored @ query.astype(np.float64)))
            assert match.key == f"s/{place[match.id]}"


@pytest.mark.parametrize("k", [1, 10, ROWS, ROWS + 100, 10_000])
def test_at_most_k_rows_best_first_and_each_once(segment, queries, k):
    for matches in segment.search(queries, k, None, ()):
        assert 0 < len(matches) <= min(k, ROWS)
        assert [m.rank for m in matches] == sorted(m.rank for m in matches)
        assert len(set(matches.ids)) == len(matches)


def test_recall_is_fair(segment, vectors, ids, queries):
    hits = [
        len(set(matches.ids) & set(exact(vectors, ids, query, 10)[0]))
        for query, matches in zip(queries, segment.search(queries, 10, None, ()), strict=True)
    ]
    assert np.mean(hits) > 3  # of 10 random directions; a floor under broken parameters


def test_a_threshold_cuts_and_changes_nothing_else(segment, queries):
    for query in queries[:5]:
        (plain,) = segment.search(query[None], 50, None, ())
        limit = plain.items[4].score
        (cut,) = segment.search(query[None], 50, limit, ())
        assert cut == plain.above(limit)
        assert len(cut) >= 5
        assert len(segment.search(query[None], 50, 1.5, ())[0]) == 0


def test_columns_are_those_asked_for(segment, vectors, ids):
    query = unit(vectors[8:9].astype(np.float32))
    for columns, expected in [
        ((), {}),
        (("caption",), {"caption": "caption 8"}),
        (("caption", "unknown"), {"caption": "caption 8"}),
        (("key", "id"), {}),
    ]:
        ((match,),) = (matches.items for matches in segment.search(query, 1, None, columns))
        assert (match.id, match.columns) == (ids[8], expected)
    assert segment.columns == ["caption"]


def test_rows_are_found_by_id(segment, vectors, ids):
    row = int(ids[7])
    assert segment.row(row) == {"id": row, "key": "s/7", "caption": None}
    np.testing.assert_array_equal(segment.find(row), vectors[7].astype(np.float32))
    assert segment.row(3) is None
    assert segment.find(3) is None
    assert list(segment.column("caption"))[7:9] == [("s/7", None), ("s/8", "caption 8")]
    assert list(segment.column("unknown")) == []
    assert len(segment) == ROWS


def test_no_query_no_result(segment):
    assert segment.search(np.empty((0, DIM), np.float32), 5, None, ()) == []


@pytest.mark.parametrize("method", ["Flat", "HNSW32"])
def test_an_empty_segment_answers_with_nothing(tmp_path, queries, method):
    write(tmp_path, method, np.empty((0, DIM), np.float16), np.empty(0, np.int64))
    segment = Segment(tmp_path)
    assert len(segment) == 0
    assert [len(m) for m in segment.search(queries, 5, None, ("caption",))] == [0] * len(queries)
    assert segment.find(1) is segment.row(1) is None


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32 - 1), st.integers(1, 300), st.sampled_from([1, 2, 8, 1000]),
    st.sampled_from([2, 8, 64]),
)  # fmt: skip
def test_flat_is_numpy_to_the_last_bit(tmp_path_factory, seed, rows, distinct, dim):
    rng = np.random.default_rng(seed)
    pool = unit(rng.normal(size=(distinct, dim))).astype(np.float16)
    vectors = pool[rng.integers(0, distinct, rows)]  # many exact ties
    nudged = rng.random(rows) < 0.3  # and many that differ in one last bit
    vectors[nudged, 0] = np.nextafter(vectors[nudged, 0], np.float16(2))
    ids = rng.permutation(rows).astype(np.int64)
    folder = tmp_path_factory.mktemp("flat")
    write(folder, "Flat", vectors, ids)
    segment = Segment(folder)
    queries = np.concatenate([unit(rng.normal(size=(3, dim))), unit(pool[:2].astype(np.float32))])
    for k in (1, rows // 2 + 1, rows + 20):
        for query, matches in zip(queries, segment.search(queries, k, None, ()), strict=True):
            assert found(matches) == exact(vectors, ids, query, k)


def test_a_row_does_not_depend_on_its_neighbours(tmp_path, vectors, ids, queries):
    write(tmp_path / "all", "Flat", vectors, ids)
    write(tmp_path / "few", "Flat", vectors[:7], ids[:7])
    few = Segment(tmp_path / "few").search(queries, 7, None, ())
    every = Segment(tmp_path / "all").search(queries, ROWS, None, ())
    for some, more in zip(few, every, strict=True):
        wanted = set(some.ids)
        assert found(some) == (
            [m.id for m in more if m.id in wanted],
            [m.score for m in more if m.id in wanted],
        )


def test_ivf_takes_its_lists_from_the_rows():
    assert new_index("IVF", DIM, 10_000).nlist == 400
    assert new_index("IVF", DIM, 3).nlist == 3
    assert new_index("IVF", DIM, 0).nlist == 1


@pytest.mark.parametrize("method", ["HNWS32", "", "PQ7", "LSH", "IDMap,Flat", "IDMap2,HNSW32"])
def test_an_unknown_method_is_a_wrong_option(method):
    with pytest.raises(ConfigError, match=f"method '{method}'"):
        new_index(method, DIM, 100)


def test_records_describe_the_files(tmp_path, vectors, ids):
    for name, record in write(tmp_path, "Flat", vectors, ids).items():
        record.verify(tmp_path / name)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        INDEX_FILE,
        ROWS_FILE,
        "vectors.npy",
    ]
    assert read_columns(tmp_path) == ["caption"]


@pytest.mark.parametrize("length", [0, 3, 100, 1000])
def test_a_cut_index_is_damage_and_names_the_file(tmp_path, vectors, ids, length):
    write(tmp_path, "HNSW32", vectors, ids)
    path = tmp_path / INDEX_FILE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=r"index\.faiss: Faiss cannot read it"):
        read_faiss(path)


def test_files_that_do_not_belong_together_are_damage(tmp_path, vectors, ids):
    write(tmp_path / "a", "Flat", vectors, ids)
    write(tmp_path / "b", "Flat", vectors[:-1], ids[:-1])
    (tmp_path / "b" / ROWS_FILE).replace(tmp_path / "a" / ROWS_FILE)
    with pytest.raises(DamagedError, match="same number of rows"):
        Segment(tmp_path / "a")


def test_opening_does_not_run_what_a_file_says(tmp_path, vectors, ids):
    write(tmp_path, "Flat", vectors, ids)
    np.save(tmp_path / "vectors.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match=r"pickle|Python objects"):
        Segment(tmp_path)


def test_any_number_of_threads_may_search(segment, queries):
    expected = segment.search(queries, 5, None, ())
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(segment.search, queries, 5, None, ()) for _ in range(12)]
    assert all(future.result() == expected for future in futures)
