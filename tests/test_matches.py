"""The law: merging parts gives what one search over everything would."""

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.matches import Coverage, Match, Matches

SCORES = st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 1.0])  # few values: many ties
MATCH = st.builds(Match, id=st.integers(0, 12), key=st.just("key"), score=SCORES)
PARTS = st.lists(st.lists(MATCH, max_size=10), max_size=5)


def result(*pairs):
    return Matches(tuple(Match(row, f"k{row}", score) for row, score in pairs))


def ranked(matches):
    return Matches(tuple(sorted(matches, key=lambda match: match.rank)))


@settings(max_examples=1000, deadline=None)
@given(PARTS, st.integers(0, 20))
def test_merge_equals_brute_force(parts, k):
    best = {}
    for match in (match for part in parts for match in part):
        best[match.id] = max(match.score, best.get(match.id, -2))
    expected = sorted((-score, row) for row, score in best.items())[:k]
    merged = Matches.merge([ranked(part) for part in parts], k)
    assert [match.rank for match in merged] == expected


@settings(max_examples=200, deadline=None)
@given(PARTS, st.integers(1, 8), st.integers(0, 5))
def test_merging_in_steps_changes_nothing(parts, k, cut):
    parts = [ranked(part) for part in parts]
    halves = [Matches.merge(parts[:cut], k), Matches.merge(parts[cut:], k)]
    assert Matches.merge(halves, k) == Matches.merge(parts, k)


def test_a_row_in_two_parts_counts_once_with_its_better_score():
    merged = Matches.merge([result((1, 0.5)), result((2, 0.7), (1, 0.9))], 5)
    assert merged == result((1, 0.9), (2, 0.7))


def test_nothing_merges_to_nothing():
    assert Matches.merge([], 5) == Matches.merge([Matches(), Matches()], 5) == Matches()


def test_above_keeps_the_threshold_itself():
    found = result((1, 0.9), (2, 0.5), (3, 0.1))
    assert found.above(0.5) == result((1, 0.9), (2, 0.5))
    assert found.above(None) is found


def test_recall_is_the_share_of_the_truth():
    truth = result((1, 0.9), (2, 0.8))
    assert result((2, 0.8), (7, 0.1)).recall(truth) == 0.5
    assert Matches().recall(truth) == 0
    assert Matches().recall(Matches()) == 1


def test_json_keeps_all_63_bits_of_an_id():
    match = Match((1 << 63) - 1, "source/key", 0.5, {"caption": "a", "id": "of the input"})
    tree = json.loads(json.dumps(match.to_json()))
    assert tree == {"id": "9223372036854775807", "key": "source/key", "score": 0.5, "caption": "a"}


def test_coverage_says_when_something_is_missing():
    assert not Coverage(shards_total=1, shards_ok=1, rows_searched=5, rows_total=5).degraded
    lost = Coverage(2, 1, 5, 12, missing=(1,))
    assert lost.degraded
    assert lost.to_json() == {
        "shards_total": 2,
        "shards_ok": 1,
        "rows_searched": 5,
        "rows_total": 12,
        "missing": [1],
    }
