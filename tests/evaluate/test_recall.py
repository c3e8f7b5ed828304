"""Recall against exact search, compared with what numpy says."""

import numpy as np
import pytest

from clipray.evaluate.recall import Judge, Queries, ladder, measure_index
from clipray.evaluate.sample import draw
from clipray.index import Index
from clipray.index.manifest import SearchSettings
from tests.handmade import build_index, clustered_halves, cut_parts, unit, write_embeddings

DIM, ROWS = 16, 1200
CARELESS = SearchSettings(nprobe=1, rescore=1)


@pytest.fixture(scope="module")
def vectors():
    return clustered_halves(30, ROWS // 30, DIM)[0]


@pytest.fixture(scope="module")
def root(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("evaluate")
    write_embeddings(folder / "e", cut_parts(vectors, 3))
    for method in ("Flat", "IVF32,Flat", "HNSW8"):
        build_index(folder / method, folder / "e", method, shards=2)
    return folder


def kinds(index):
    rows = draw(index, 50, seed=3)
    images = Queries(np.stack([row.vector for row in rows]), tuple(row.id for row in rows))
    texts = unit(np.random.default_rng(4).normal(size=(40, DIM)))
    return {"image": images, "text": Queries(texts, (None,) * 40)}


def test_flat_finds_everything(root):
    index = Index.open(root / "Flat")
    found = measure_index(index, "x", kinds(index))
    names = ("recall@1", "recall@10", "recall@100")
    assert found.recall == {kind: dict.fromkeys(names, 1.0) for kind in ("image", "text")}
    assert (found.rows, found.curve, found.curve_k) == (ROWS, (), 10)
    assert found.queries == {"image": 50, "text": 40}


def test_a_careless_search_has_the_recall_that_numpy_says(root):
    index = Index.open(root / "IVF32,Flat")
    index.tuned(CARELESS)
    for kind, queries in kinds(index).items():
        judge = Judge(index, queries)
        recall = judge.recall(lambda k, q=queries: index.search(q.vectors, k))
        for k in (1, 10, 100):
            found = index.search(queries.vectors, k + queries.spare)
            expected = numpy_recall(index, queries, [one.ids for one in found], k)
            assert recall[f"recall@{k}"] == pytest.approx(expected, abs=1e-9), kind
        assert recall["recall@10"] < 1


def numpy_recall(index, queries, found, k):
    """Share of the k best by plain products, the query's own row left out on both sides."""
    rows = draw(index, ROWS, seed=0)
    scores = queries.vectors @ np.stack([row.vector for row in rows]).T
    shares = []
    for number, own in enumerate(queries.own):
        order = (rows[place].id for place in np.argsort(-scores[number]))
        best = [row for row in order if row != own][:k]
        kept = [row for row in found[number] if row != own][:k]
        shares.append(len(set(best) & set(kept)) / k)
    return np.mean(shares)


def test_a_row_that_is_searched_for_does_not_count_as_found(root):
    index = Index.open(root / "Flat")
    queries = kinds(index)["image"]
    only_itself = [one.__class__(one.items[:1]) for one in index.search(queries.vectors, 1)]
    assert [one.ids[0] for one in only_itself] == list(queries.own)
    assert Judge(index, queries).recall_at(1, lambda k: only_itself) == 0


@pytest.mark.parametrize(("method", "setting"), [("IVF32,Flat", "nprobe"), ("HNSW8", "ef_search")])
def test_the_curve_goes_from_careless_to_thorough(root, method, setting):
    index = Index.open(root / method)
    found = measure_index(index, "x", kinds(index))
    values = [getattr(point.settings, setting) for point in found.curve]
    assert values == sorted(set(values))
    assert [point.settings for point in found.curve if point.chosen] == [index.manifest.settings]
    assert found.curve[-1].recall["image"] > 0.99
    assert found.curve[0].recall["text"] <= found.curve[-1].recall["text"]
    assert all(ms > 0 for point in found.curve for ms in point.ms.values())


def test_afterwards_the_index_is_set_as_before(root):
    index = Index.open(root / "IVF32,Flat")
    queries = kinds(index)["text"]
    before = [one.ids for one in index.search(queries.vectors, 10)]
    measure_index(index, "x", {"text": queries})
    assert [one.ids for one in index.search(queries.vectors, 10)] == before


def test_where_nothing_can_be_varied_there_is_no_ladder(root):
    assert ladder(Index.open(root / "Flat")) == []


def test_few_rows_are_asked_for_few(tmp_path, vectors):
    write_embeddings(tmp_path / "e", cut_parts(vectors[:5], 1))
    build_index(tmp_path / "i", tmp_path / "e")
    index = Index.open(tmp_path / "i")
    rows = draw(index, 50, seed=0)
    queries = Queries(np.stack([row.vector for row in rows]), tuple(row.id for row in rows))
    assert measure_index(index, "x", {"image": queries}).recall == {"image": {"recall@1": 1.0}}


def test_the_same_seed_draws_the_same_rows(root):
    index = Index.open(root / "Flat")
    ids = [row.id for row in draw(index, 30, seed=5)]
    assert len(set(ids)) == 30
    assert ids == [row.id for row in draw(index, 30, seed=5)]
    assert ids != [row.id for row in draw(index, 30, seed=6)]
    assert {row.id for row in draw(index, ROWS + 9, seed=5)} > set(ids)
