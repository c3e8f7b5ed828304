"""Approximate search looks as hard as it is told, and deleted rows cost no recall."""

import faiss
import numpy as np
import pytest

from clipray.index.approximate import FEW_ROWS, GRAPH_COST, Approximate
from clipray.index.exact import ExactScan
from clipray.index.manifest import SearchSettings
from clipray.index.method import default_settings, new_index
from clipray.index.segment import map_faiss
from clipray.index.writer import write_faiss
from clipray.storage import stream_file
from tests.handmade import clustered_halves, random_halves, unit

DIM, ROWS = 64, 4000
LISTS, GRAPH, ALL = "lists", "graph", "all"  # what it looks through
METHODS = {
    "HNSW32": GRAPH,
    "HNSW32_SQfp16": GRAPH,
    "HNSW32_SQ8,RFlat": GRAPH,
    "PCA32,HNSW32": GRAPH,
    "IVF16,Flat": LISTS,
    "IVF16,SQ8,RFlat": LISTS,
    "IVF16,PQ16x4fs": LISTS,
    "IVF16_HNSW32,PQ16x4fs": LISTS,
    "OPQ8_32,IVF16,PQ8x4fs": LISTS,
    "IVF16,RaBitQ": LISTS,
    "IVF16,RaBitQfs": LISTS,
    "PQ16x4fs": ALL,
    "SQ8": ALL,
    "SQfp16": ALL,
    "RaBitQ": ALL,
    "RaBitQfs": ALL,
}
LITTLE = SearchSettings(nprobe=1, ef_search=1, rescore=1)


def approximate(folder, method, vectors, settings=None, train=None):
    """An index that was written and read back."""
    index = new_index(method, vectors.shape[1], len(vectors))
    index.train(vectors[:train].astype(np.float32))
    index.add(vectors.astype(np.float32))
    stream_file(folder / "index.faiss", lambda sink: write_faiss(index, sink))
    scan = ExactScan(vectors, np.arange(len(vectors)))
    return Approximate(map_faiss(folder / "index.faiss"), scan, settings or default_settings(index))


def recall(index, queries, k=10, allowed=None):
    """Mean share of the exact answer that is found; what must not be found is not."""
    count = len(index._exact.ids) if allowed is None else int(allowed.sum())
    truth = index._exact.search(queries, k, allowed)
    answers = index.search(queries, k, allowed, count)
    if allowed is not None:
        assert all(allowed[rows].all() for rows, _ in answers)
    assert all(len(rows) == min(k, count) for rows, _ in answers)
    pairs = zip(answers, truth, strict=True)
    return np.mean([np.isin(best, rows).mean() for (rows, _), (best, _) in pairs])


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS, DIM)


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(1).normal(size=(30, DIM)))


@pytest.fixture(scope="module", params=METHODS)
def method(request):
    return request.param


@pytest.fixture(scope="module")
def index(tmp_path_factory, method, vectors):
    """Trained on few rows, because a product quantizer of 256 codes is slow to train."""
    return approximate(tmp_path_factory.mktemp("index"), method, vectors, train=600)


def test_it_knows_what_it_looks_through(index, method):
    kind = METHODS[method]
    assert (index.lists, index.is_graph) == (16 if kind == LISTS else 0, kind == GRAPH)


def test_looking_harder_finds_more(index, method, queries):
    kind = METHODS[method]
    index.settings = LITTLE
    little = recall(index, queries)
    reach = {LISTS: {"nprobe": 16}, GRAPH: {"ef_search": ROWS // GRAPH_COST}, ALL: {}}[kind]
    index.settings = LITTLE.model_copy(update=reach)
    further = recall(index, queries)
    index.settings = SearchSettings(**reach, rescore=60)
    deeper = recall(index, queries)
    if reach:
        assert further > little
    assert deeper >= further
    assert deeper > 0.8


def test_scores_are_exact_and_best_first(index, vectors, queries):
    index.settings = default_settings(index._kept[0])
    for query, (rows, scores) in zip(queries, index.search(queries, 20, None, ROWS), strict=True):
        exact = vectors[rows].astype(np.float64) @ query.astype(np.float64)
        assert scores.tolist() == exact.astype(np.float32).tolist()
        order = np.lexsort((rows, -scores))
        assert order.tolist() == list(range(20))


def test_only_allowed_rows_are_found_and_as_many_as_there_are(index, queries):
    index.settings = default_settings(index._kept[0])
    rng = np.random.default_rng(2)
    for count in (1, 5, ROWS // 2, ROWS - 1):
        allowed = np.isin(np.arange(ROWS), rng.permutation(ROWS)[:count])
        recall(index, queries, 10, allowed)
    recall(index, queries, ROWS + 1, allowed)


def test_nothing_is_asked(index, vectors):
    assert index.search(np.empty((0, DIM), np.float32), 5, None, ROWS) == []


@pytest.fixture(scope="module")
def clusters():
    """20,000 rows around 100 centres, and which of them are left when 30 of those are gone."""
    vectors, labels = clustered_halves(100, 200, DIM)
    return vectors, labels >= 30


@pytest.fixture(scope="module", params=["HNSW32", "IVF", "IVF64,PQ32x4fs"])
def clustered(request, tmp_path_factory, clusters):
    folder = tmp_path_factory.mktemp("clustered")
    return request.param, approximate(folder, request.param, clusters[0])


def around(vectors, rows, length, seed=3):
    """Queries beside some rows."""
    noise = unit(np.random.default_rng(seed).normal(size=(len(rows), DIM)))
    return unit(vectors[rows].astype(np.float32) + length * noise)


def test_deleted_clusters_cost_no_recall_where_queries_aim_at_them(tmp_path, clusters, clustered):
    (vectors, live), (method, index) = clusters, clustered
    gone = np.random.default_rng(4).choice(np.flatnonzero(~live), 200, replace=False)
    queries = around(vectors, gone, 0.3)
    here = recall(index, queries, allowed=live)
    anew = recall(approximate(tmp_path, method, vectors[live]), queries)
    assert here >= max(0.95, anew)


def test_filters_cost_no_recall(clusters, clustered):
    (vectors, _), (_, index) = clusters, clustered
    rng = np.random.default_rng(5)
    queries = around(vectors, rng.choice(len(vectors), 100, replace=False), 0.5)
    for share in (0.45, 0.7, 0.99):
        assert recall(index, queries, allowed=rng.random(len(vectors)) < share) >= 0.95


def test_most_rows_may_be_dead(clusters, clustered):
    (vectors, live), (_, index) = clusters, clustered
    queries = around(vectors, np.flatnonzero(~live)[:50], 0.3)
    rest = np.flatnonzero(live)[: FEW_ROWS + 1]
    assert recall(index, queries, allowed=np.isin(np.arange(len(vectors)), rest)) >= 0.95


def test_a_graph_is_left_alone_where_a_scan_is_cheaper(monkeypatch, index, queries):
    if not index.is_graph:
        return
    looks = []
    monkeypatch.setattr(index, "_look", lambda *_: looks.append(1))
    index.settings = SearchSettings(ef_search=ROWS // GRAPH_COST + 1)
    assert recall(index, queries) == 1
    assert not looks


def test_few_allowed_rows_are_looked_at_one_by_one(clusters, clustered):
    (vectors, live), (_, index) = clusters, clustered
    queries = around(vectors, np.flatnonzero(~live)[:50], 0.3)
    few = np.isin(np.arange(len(vectors)), np.flatnonzero(live)[:FEW_ROWS])
    assert recall(index, queries, allowed=few) == 1


def test_a_refinement_of_the_user_is_not_done_twice(index):
    base = faiss.downcast_index(index._refined.base_index)
    assert not isinstance(base, faiss.IndexRefine)
