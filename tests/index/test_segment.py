"""One contract for every method, and damage that is told."""

import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pytest

from clipray.errors import DamagedError
from clipray.index.manifest import SearchSettings
from clipray.index.segment import FILTERS_KEPT, Segment, map_faiss, read_faiss
from clipray.index.table import ROWS_FILE
from clipray.index.writer import INDEX_FILE, VECTORS_FILE
from tests.handmade import (
    brute_force,
    found,
    keys_ids,
    make_segment,
    random_halves,
    row_table,
    unit,
    write_segment,
)

DIM, ROWS = 32, 1200
METHODS = {
    "Flat": None,
    "IVF": SearchSettings(nprobe=30, rescore=1),
    "HNSW32": SearchSettings(ef_search=16, rescore=1),
    "PQ16x4": None,
    "IVF8,SQ8,RFlat": SearchSettings(nprobe=6),
}
LESS = {"n": {"$lt": 900}}


def table(count):
    captions = [None if row % 7 == 0 else f"caption {row}" for row in range(count)]
    return row_table([f"s/{row}" for row in range(count)], caption=captions, n=range(count))


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS, DIM, seed=1)


@pytest.fixture(scope="module")
def ids():
    return keys_ids(ROWS)


@pytest.fixture(scope="module")
def dead():
    return np.random.default_rng(4).random(ROWS) < 0.3


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def folder(tmp_path_factory, method, vectors):
    folder = tmp_path_factory.mktemp("segment") / "one"
    write_segment(folder, vectors, table(ROWS), method)
    return folder


@pytest.fixture(scope="module")
def segment(folder, method):
    return Segment(folder, settings=METHODS[method])


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(2).normal(size=(20, DIM)))


def test_every_row_finds_itself(segment, vectors, ids):
    results = segment.search(unit(vectors.astype(np.float32)), 1)
    assert [matches.ids[0] for matches in results] == ids.tolist()


def test_scores_are_the_exact_dot_products(segment, vectors, queries):
    for query, matches in zip(queries, segment.search(queries, 30), strict=True):
        for hit in matches:
            stored = vectors[hit.row].astype(np.float64)
            assert hit.score == float(np.float32(stored @ query.astype(np.float64)))
            assert (hit.segment, segment.table.row(hit.row)["id"]) == (segment, hit.id)


@pytest.mark.parametrize("k", [1, 10, ROWS, ROWS + 100, 10_000])
def test_at_most_k_rows_best_first_and_each_once(segment, queries, k):
    for matches in segment.search(queries, k):
        assert len(matches) == min(k, ROWS)
        assert [m.rank for m in matches] == sorted(m.rank for m in matches)
        assert len(set(matches.ids)) == len(matches)


def test_recall_is_fair(segment, queries):
    pairs = zip(segment.search(queries, 10), segment.search(queries, 10, exact=True), strict=True)
    assert np.mean([some.recall(truth) for some, truth in pairs]) > 0.6


@pytest.mark.parametrize(
    ("tree", "selected"), [(None, range(ROWS)), (LESS, range(900)), ({"n": 7}, [7])]
)
def test_the_dead_and_the_filtered_are_never_found(
    folder, vectors, ids, dead, queries, tree, selected
):
    segment = Segment(folder, dead)
    allowed = ~dead & np.isin(np.arange(ROWS), selected)
    assert len(segment) == (~dead).sum()
    for k in (1, 10, ROWS):
        every = segment.search(queries, k, tree)
        for query, matches in zip(queries, every, strict=True):
            assert set(matches.ids) <= set(ids[allowed].tolist())
            assert len(matches) == min(k, allowed.sum())
            truth = brute_force(vectors, ids, query, k, allowed)
            if k == ROWS:
                assert found(matches) == truth
    for query, matches in zip(queries, segment.search(queries, 9, tree, exact=True), strict=True):
        assert found(matches) == brute_force(vectors, ids, query, 9, allowed)


def test_dead_rows_are_not_found_by_id_either(folder, ids, dead):
    segment = Segment(folder, dead)
    assert segment.live_rows().tolist() == np.flatnonzero(~dead).tolist()
    found = [segment.find(row_id) for row_id in ids.tolist()]
    assert found == [None if dead[row] else row for row in range(ROWS)]
    assert dict(segment.column("n")) == {f"s/{row}": row for row in np.flatnonzero(~dead)}


def test_where_all_are_dead_nothing_is_found(folder, queries):
    segment = Segment(folder, np.ones(ROWS, bool))
    assert len(segment) == 0
    assert [len(matches) for matches in segment.search(queries, 5)] == [0] * len(queries)
    assert [len(matches) for matches in segment.search(queries, 5, LESS)] == [0] * len(queries)


def test_rows_are_found_by_id(segment, ids):
    assert segment.find(int(ids[7])) == 7
    assert segment.find(3) is None
    assert segment.live_rows().tolist() == list(range(ROWS))
    assert list(segment.column("caption"))[7:9] == [("s/7", None), ("s/8", "caption 8")]
    assert list(segment.column("unknown")) == []
    assert len(segment) == ROWS


def test_no_query_no_result(segment):
    assert segment.search(np.empty((0, DIM), np.float32), 5) == []


@pytest.mark.parametrize("method", ["Flat", "HNSW32"])
def test_an_empty_segment_answers_with_nothing(tmp_path, queries, method):
    segment = make_segment(tmp_path / "s", np.empty((0, DIM), np.float16), table(0), method)
    assert len(segment) == 0
    assert [len(matches) for matches in segment.search(queries, 5)] == [0] * len(queries)
    assert [len(matches) for matches in segment.search(queries, 5, LESS)] == [0] * len(queries)
    assert segment.find(1) is None


def test_settings_are_those_given_until_others_come(tmp_path, vectors):
    settings = SearchSettings(nprobe=3)
    segment = make_segment(tmp_path / "s", vectors, method="IVF8,Flat", settings=settings)
    assert segment.approximate.settings == settings
    segment.tuned(SearchSettings(nprobe=4))
    assert segment.approximate.settings.nprobe == 4
    flat = make_segment(tmp_path / "flat", vectors)
    flat.tuned(SearchSettings(nprobe=4))
    assert flat.approximate is None


@pytest.mark.parametrize("read", [read_faiss, map_faiss])
@pytest.mark.parametrize("length", [0, 3, 100, 1000])
def test_a_cut_index_is_damage_and_names_the_file(tmp_path, vectors, length, read):
    write_segment(tmp_path / "s", vectors, table(ROWS), "HNSW32")
    path = tmp_path / "s" / INDEX_FILE
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(DamagedError, match=r"index\.faiss: Faiss cannot read it"):
        read(path)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (INDEX_FILE, r"index\.faiss: has 1199 rows, the segment 1200"),
        (ROWS_FILE, "have not the same rows"),
        (VECTORS_FILE, "do not have the same rows"),
    ],
)
def test_files_that_do_not_belong_together_are_damage(tmp_path, vectors, name, told):
    write_segment(tmp_path / "a", vectors, table(ROWS), "HNSW32")
    write_segment(tmp_path / "b", vectors[:-1], table(ROWS - 1), "HNSW32")
    (tmp_path / "b" / name).replace(tmp_path / "a" / name)
    with pytest.raises(DamagedError, match=told):
        Segment(tmp_path / "a")


def test_opening_does_not_run_what_a_file_says(tmp_path, vectors):
    write_segment(tmp_path / "s", vectors, table(ROWS))
    objects = np.array([{"a": 1}], dtype=object)
    np.save(tmp_path / "s" / VECTORS_FILE, objects, allow_pickle=True)
    with pytest.raises(DamagedError, match=r"pickle|Python objects"):
        Segment(tmp_path / "s")


def test_any_number_of_threads_may_search(folder, dead, queries):
    segment = Segment(folder, dead)
    expected = segment.search(queries, 5)
    with ThreadPoolExecutor(4) as threads:
        futures = [threads.submit(segment.search, queries, 5) for _ in range(12)]
    assert all(future.result() == expected for future in futures)


@pytest.fixture
def hasty_threads():
    """Threads that take turns a thousand times as often as usual."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


def test_more_filters_than_are_kept_change_nothing(tmp_path, hasty_threads):
    vectors = random_halves(40, 8)
    segment = make_segment(tmp_path / "s", vectors, table(40))
    query = unit(vectors[:1].astype(np.float32))
    filters = [{"n": {"$gte": n % 40}} for n in range(4 * FILTERS_KEPT)]
    expected = [len(segment.search(query, 50, tree)[0]) for tree in filters]
    assert expected == [40 - n % 40 for n in range(4 * FILTERS_KEPT)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(partial(segment.search, query, 50), filters * 20))
    assert [len(matches) for (matches,) in answers] == expected * 20
