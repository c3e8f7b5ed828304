"""Thresholds of scores that were made by hand."""

import numpy as np
import pytest

from clipray.evaluate.pairs import Pairs
from clipray.evaluate.threshold import OTHERS, best_f1, few_false, judge, score_pairs
from tests.handmade import unit


def test_between_two_clear_groups_the_best_f1_is_perfect():
    found = best_f1(np.array([0.7, 0.8, 0.9]), np.array([0.1, 0.2, 0.3]))
    assert (found.score, found.pairs, found.others) == (0.7, 1, 0)


def test_the_best_f1_weighs_what_is_lost_against_what_is_let_in():
    # at 0.2 it is 2 / (1 + 1 + 0.9); at 0.8 it is 1.8 / (1 + 0.9)
    found = best_f1(np.array([0.2, *[0.8] * 9]), np.array([0.1, *[0.3] * 9]))
    assert (found.score, found.pairs, found.others) == (0.8, 0.9, 0)


def test_the_best_f1_does_not_depend_on_how_many_non_pairs_were_drawn():
    own, other = np.array([0.3, 0.5, 0.6, 0.9]), np.array([0.1, 0.2, 0.4, 0.55])
    assert best_f1(own, other) == best_f1(own, np.tile(other, 16))


def test_one_percent_of_the_non_pairs_pass():
    other = np.arange(1000) / 1000
    found = few_false(np.array([0.5, 0.995]), other)
    assert found.others == pytest.approx(0.01, abs=1e-9)
    assert found.score == pytest.approx(0.9891, abs=1e-4)
    assert found.pairs == 0.5


def test_of_equal_non_pairs_none_pass():
    found = few_false(np.array([0.5]), np.full(200, 0.25))
    assert found.others == 0
    assert 0.25 < found.score < 0.2502


def test_the_histograms_hold_everything():
    found = judge(np.array([0.1, 1.0]), np.array([-1.0, 0.0, 0.1]))
    assert sum(found.pairs_shares) == pytest.approx(1)
    assert sum(found.others_shares) == pytest.approx(1)
    assert len(found.edges) == len(found.pairs_shares) + 1


def test_no_caption_is_a_non_pair_of_its_own_picture():
    vectors = np.eye(6, dtype=np.float32)
    names = tuple("abcdef")
    found = score_pairs(Pairs(names, (None,) * 6, vectors, names, vectors, np.arange(6)), seed=0)
    assert (found.pairs, found.others) == (6, 6 * OTHERS)
    assert found.best_f1.score == 1
    assert found.best_f1.others == 0


def test_one_picture_has_no_others():
    one = unit(np.ones((1, 4)))
    assert score_pairs(Pairs(("a",), (None,), one, ("x",), one, np.arange(1)), seed=0) is None
