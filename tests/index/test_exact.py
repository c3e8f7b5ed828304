"""The exact scan is numpy to the last bit, whichever way it takes."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.index import exact
from clipray.index.exact import GATHER_SHARE, MANY_QUERIES, ExactScan
from tests.handmade import brute_force, random_halves, unit

DIM, ROWS = 32, 600
FEW, MANY = MANY_QUERIES - 1, MANY_QUERIES


def listed(ranked, ids):
    return [(ids[rows].tolist(), scores.tolist()) for rows, scores in ranked]


def expected(vectors, ids, queries, k, allowed=None):
    return [brute_force(vectors, ids, query, k, allowed) for query in queries]


def with_ties(rng, rows, distinct, dim):
    """Vectors of which many are equal, and many differ in one last bit."""
    pool = unit(rng.normal(size=(distinct, dim))).astype(np.float16)
    vectors = pool[rng.integers(0, distinct, rows)]
    nudged = rng.random(rows) < 0.3
    vectors[nudged, 0] = np.nextafter(vectors[nudged, 0], np.float16(2))
    return vectors


@pytest.fixture(scope="module")
def vectors():
    halves = random_halves(ROWS, DIM)
    halves[300:330] = halves[0]  # more ties than are looked at in the first go
    return halves


@pytest.fixture(scope="module")
def ids():
    return np.random.default_rng(1).permutation(ROWS).astype(np.int64)


@pytest.fixture(scope="module")
def queries(vectors):
    drawn = unit(np.random.default_rng(2).normal(size=(MANY - 2, DIM)))
    return np.concatenate([unit(vectors[[0, 5]].astype(np.float32)), drawn])


@settings(max_examples=300, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(0, 300),
    distinct=st.sampled_from([1, 2, 8, 1000]),
    dim=st.sampled_from([1, 2, 3, 8, 65]),
    live=st.sampled_from([None, 0, 0.01, 0.5, 1]),
    block=st.sampled_from([1, 7, 64, 4096]),
)
def test_it_is_numpy_to_the_last_bit(seed, rows, distinct, dim, live, block):
    rng = np.random.default_rng(seed)
    vectors, ids = with_ties(rng, rows, distinct, dim), rng.permutation(rows).astype(np.int64)
    allowed = None if live is None else rng.random(rows) < live
    queries = unit(rng.normal(size=(int(rng.choice([1, FEW, MANY])), dim)))
    scan = ExactScan(vectors, ids)
    with patch.object(exact, "BLOCK_ROWS", block):
        for k in (1, rows // 3 + 1, rows + 20):
            ranked = scan.search(queries, k, allowed)
            assert listed(ranked, ids) == expected(vectors, ids, queries, k, allowed)


class Spy:
    """Counts the ways that were taken."""

    def __init__(self, monkeypatch):
        self.ways = []
        self._monkeypatch = monkeypatch
        self._watch("_multiply", lambda scan, queries, wanted, allowed: "matrix")
        self._watch(
            "_candidates",
            lambda scan, queries, wanted, allowed: "bitmap" if allowed is not None else "plain",
        )

    def _watch(self, name, way):
        real = getattr(ExactScan, name)

        def call(scan, queries, wanted, allowed):
            self.ways.append((way(scan, queries, wanted, allowed), len(scan.ids)))
            return real(scan, queries, wanted, allowed)

        self._monkeypatch.setattr(ExactScan, name, call)


@pytest.mark.parametrize(
    ("count", "live", "ways"),
    [
        (FEW, None, {("plain", ROWS)}),
        (MANY, None, {("plain", ROWS), ("matrix", ROWS)}),
        (FEW, ROWS // 2, {("bitmap", ROWS)}),
        (MANY, ROWS // 2, {("bitmap", ROWS), ("matrix", ROWS)}),
        (FEW, 18, {("plain", 18)}),
        (MANY, 18, {("plain", 18), ("matrix", 18)}),
    ],
)
def test_every_way_gives_the_same(monkeypatch, vectors, ids, queries, count, live, ways):
    assert 18 <= ROWS * GATHER_SHARE < ROWS // 2
    allowed = None if live is None else np.isin(np.arange(ROWS), np.arange(live) * (ROWS // live))
    spy = Spy(monkeypatch)
    ranked = ExactScan(vectors, ids).search(queries[:count], 10, allowed)
    assert listed(ranked, ids) == expected(vectors, ids, queries[:count], 10, allowed)
    assert set(spy.ways) == ways


def test_it_looks_again_until_no_tie_is_cut(monkeypatch, vectors, ids, queries):
    spy = Spy(monkeypatch)
    (ranked,) = ExactScan(vectors, ids).search(queries[:1], 5)
    assert len(spy.ways) > 1
    twins = np.append(np.arange(300, 330), 0)
    assert ids[ranked[0]].tolist() == np.sort(ids[twins])[:5].tolist()


@pytest.mark.parametrize("count", [FEW, MANY])
def test_a_score_does_not_depend_on_the_neighbours(vectors, ids, queries, count):
    few = ExactScan(vectors[:7].copy(), ids[:7]).search(queries[:count], 7)
    every = ExactScan(vectors, ids).search(queries[:count], ROWS)
    for (rows, scores), (all_rows, all_scores) in zip(few, every, strict=True):
        found = dict(zip(all_rows.tolist(), all_scores.tolist(), strict=True))
        assert [found[row] for row in rows.tolist()] == scores.tolist()


def test_nothing_is_searched_and_nothing_is_found(vectors, ids, queries):
    scan = ExactScan(vectors, ids)
    assert scan.search(np.empty((0, DIM), np.float32), 5) == []
    empty = ExactScan(np.empty((0, DIM), np.float16), np.empty(0, np.int64))
    for searched, allowed in ((empty, None), (empty, np.zeros(0, bool)), (scan, ids < 0)):
        found = searched.search(queries, 5, allowed)
        assert [len(rows) for rows, _ in found] == [0] * len(queries)


def test_vectors_stay_where_they_are(tmp_path, vectors, ids, queries):
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.asarray(np.load(tmp_path / "vectors.npy", mmap_mode="r"))
    scan = ExactScan(mapped, ids)
    assert np.shares_memory(scan.vectors, mapped)
    assert listed(scan.search(queries, 9), ids) == expected(vectors, ids, queries, 9)
