"""Of matches that look alike the best one stays."""

import numpy as np
import pytest

from clipray.duplicates import BLOCK, MOST, asks, without_duplicates
from clipray.matches import Match, Matches


def matches(vectors):
    return Matches(tuple(Match(place, vector=row) for place, row in enumerate(vectors)))


def clusters(count, centres, noise):
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((centres, 16))
    vectors = middle[rng.integers(0, centres, count)] + noise * rng.standard_normal((count, 16))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def walked(vectors, similarity, k):
    """The definition, one at a time."""
    kept = []
    for place, vector in enumerate(vectors):
        if all(float(vector @ vectors[one]) < similarity for one in kept) and len(kept) < k:
            kept.append(place)
    return kept


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.25])
@pytest.mark.parametrize("k", [1, 20, 150, 900])
def test_the_same_stay_as_in_a_walk_from_the_best_to_the_worst(noise, k):
    vectors = clusters(3 * BLOCK + 7, 200, noise)
    expected = walked(vectors, 0.94, k)
    assert without_duplicates(matches(vectors), 0.94, k).ids == expected
    assert len(expected) < len(vectors)


def test_what_is_alike_only_one_that_goes_stays():
    angles = np.deg2rad([0, 15, 30])
    fan = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    assert without_duplicates(matches(fan), 0.94, 3).ids == [0, 2]


def test_equal_vectors_are_alike_however_they_are_rounded():
    different = clusters(64, 64, 1.0)
    twice = np.concatenate([different, different, 1.001 * different])
    assert without_duplicates(matches(twice), 1.0, 192).ids == list(range(64))
    halves = different.astype(np.float16).astype(np.float32)
    assert len(without_duplicates(matches([*halves, *different]), 0.9999, 192)) == 64


def test_of_nothing_nothing_is_left():
    assert without_duplicates(Matches(), 0.9, 5) == Matches()


@pytest.mark.parametrize("k", [1, 10, 40, 1_000, 3_000, 10_000])
def test_at_least_k_are_asked_for_and_more_the_second_time(k):
    asked = asks(k)
    assert asked[0] >= k
    assert list(asked) == sorted(set(asked))
    assert max(asked) <= max(k, MOST)
    assert len(asked) == (2 if k < MOST else 1)
