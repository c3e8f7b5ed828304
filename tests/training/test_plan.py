"""The law: an epoch follows from (seed, epoch) alone, and every step of it can be reached."""

import pickle
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.errors import ConfigError
from clipray.training.plan import Plan

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(any)
SEEDS = st.integers(0, 2**40)


def all_of(counts):
    return {(shard, number) for shard, count in enumerate(counts) for number in range(count)}


def rows(plan, epoch, start=0):
    """The samples of an epoch in their order."""
    return [tuple(row) for batch in plan.batches(epoch, start) for row in batch.tolist()]


@settings(max_examples=60, deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 5), st.integers(0, 9))
def test_an_epoch_sees_every_sample_once(counts, seed, window, epoch):
    found = rows(Plan(counts, 1, seed, window=window), epoch)
    assert len(found) == sum(counts)
    assert set(found) == all_of(counts)


@settings(max_examples=60, deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 20), st.data())
def test_every_step_can_be_reached_alone(counts, seed, size, data):
    size = min(size, sum(counts))
    plan = Plan(counts, size, seed, window=3)
    start = data.draw(st.integers(0, plan.steps))
    whole, rest = list(plan.batches(4)), list(plan.batches(4, start))
    assert len(whole) == plan.steps
    assert all(batch.shape == (size, 2) and batch.dtype == np.int64 for batch in whole)
    assert plan.steps * size + plan.dropped == sum(counts)
    np.testing.assert_array_equal(np.array(rest), np.array(whole[start:]))


@settings(max_examples=40, deadline=None)
@given(COUNTS, SEEDS, st.integers(1, 4))
def test_a_window_of_samples_lies_in_few_shards(counts, seed, window):
    found = [shard for shard, _ in rows(Plan(counts, 1, seed, window=window), 0)]
    for shard in set(found):
        places = [place for place, other in enumerate(found) if other == shard]
        between = set(found[places[0] : places[-1] + 1])
        assert len(between) <= window


def test_the_samples_of_a_window_are_mixed():
    found = [shard for shard, _ in rows(Plan([50] * 8, 1, 0, window=4), 0)]
    assert len(set(found[:200])) == 4
    assert len(set(found[:20])) == 4
    assert set(found[:200]).isdisjoint(found[200:])


def test_weights_tell_how_often_an_epoch_sees_a_sample():
    plan = Plan([10, 10, 10, 0], 1, 3, weights=[1.0, 2.5, 0.0, 7.0], window=2)
    assert plan.samples == 35
    drawn = []
    for epoch in range(4):
        found = rows(plan, epoch)
        times = {place: found.count(place) for place in set(found)}
        assert [times[0, number] for number in range(10)] == [1] * 10
        assert sorted(times[1, number] for number in range(10)) == [2] * 5 + [3] * 5
        assert len(times) == 20
        drawn.append(frozenset(place for place, count in times.items() if count == 3))
    assert len(set(drawn)) > 1


def test_epochs_and_seeds_differ_and_repeat():
    first = rows(Plan([30, 20], 10, 1), 4)
    assert first == rows(pickle.loads(pickle.dumps(Plan([30, 20], 10, 1))), 4)
    assert first != rows(Plan([30, 20], 10, 1), 5)
    assert first != rows(Plan([30, 20], 10, 2), 4)


def test_others_are_dropped_each_time():
    plan = Plan([5, 6], 4, 0)
    assert (plan.steps, plan.dropped) == (2, 3)
    left_out = {frozenset(all_of([5, 6]) - set(rows(plan, epoch))) for epoch in range(8)}
    assert {len(left) for left in left_out} == {3}
    assert len(left_out) > 4


def test_the_order_is_fixed_for_ever():
    plan = Plan([4, 3, 5], 3, 7, window=2)
    assert next(plan.batches(1, 2)).tolist() == [[2, 3], [2, 0], [0, 2]]


def test_many_shards_are_planned_at_once_and_read_late():
    plan = Plan([10_000] * 10_000, 4096, 0)
    (last,) = islice(plan.batches(0, plan.steps - 1), 1)
    assert last.shape == (4096, 2)


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ConfigError, match="11 samples with captions do not fill one batch of 12"):
        Plan([5, 6], 12, 0)
    with pytest.raises(ConfigError, match="do not fill one batch"):
        Plan([], 1, 0)
    plan = Plan([100], 12, 0)
    plan.check_world(4, accumulate=3)
    with pytest.raises(ConfigError, match="12 cannot be split evenly on 5 workers;"):
        plan.check_world(5)
    with pytest.raises(
        ConfigError, match=r"on 4 workers in 2 micro-batches each; .* multiple of 8"
    ):
        plan.check_world(4, accumulate=2)
