"""What a filter lets pass, and what is no filter."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from clipray.filters import FilterTree, accepts

ROW = {"width": 640, "language": "en", "NSFW": None, "score": 0.5, "seen": True, "bad": "NaN"}
PARSE = TypeAdapter(FilterTree).validate_python


@pytest.mark.parametrize(
    ("tree", "passes"),
    [
        ({"width": 640}, True),
        ({"width": 640.0}, True),
        ({"width": {"$gte": 256}}, True),
        ({"width": {"$gt": 640}}, False),
        ({"width": {"$gte": 256, "$lt": 640}}, False),
        ({"width": {"$lte": 640}, "language": "en"}, True),
        ({"width": {"$lte": 640}, "language": "de"}, False),
        ({"language": {"$in": ["de", "en"]}}, True),
        ({"language": {"$nin": ["de", "en"]}}, False),
        ({"language": {"$contains": "n"}}, True),
        ({"language": {"$ne": "de"}}, True),
        ({"$or": [{"width": 1}, {"language": "en"}]}, True),
        ({"$and": [{"width": 640}, {"$not": {"language": "en"}}]}, False),
        ({"NSFW": {"$exists": False}}, True),
        ({"NSFW": None}, True),
        ({"nothing": None}, True),
        ({"width": {"$exists": True}}, True),
        ({"nothing": {"$gt": 0}}, False),
        ({"nothing": {"$ne": 0}}, True),
        ({"NSFW": {"$nin": ["UNSAFE"]}}, True),
        ({"language": {"$gt": 5}}, False),  # another kind
        ({"width": {"$contains": "6"}}, False),
        ({"seen": 1}, False),
        ({"seen": True}, True),
        ({"width": {"$gt": False}}, False),
    ],
)
def test_what_passes(tree, passes):
    assert accepts(PARSE(tree), ROW) is passes


@pytest.mark.parametrize("operator", ["$gt", "$gte", "$lt", "$lte", "$eq"])
def test_nan_is_like_nothing(operator):
    assert not accepts({"x": {operator: 1.0}}, {"x": float("nan")})
    assert not accepts({"x": {operator: float("nan")}}, {"x": float("nan")})


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()), st.integers())
def test_not_is_the_other_answer(value, operand):
    for operator in ("$gt", "$gte", "$lt", "$lte", "$eq", "$ne"):
        tree = {"x": {operator: operand}}
        assert accepts(tree, {"x": value}) != accepts({"$not": tree}, {"x": value})


def test_a_string_is_json():
    assert PARSE('{"width": {"$gte": 256}}') == {"width": {"$gte": 256}}


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("{", "not valid JSON"),
        ("[1]", "valid dictionary"),
        ({}, "expected an object"),
        ({"width": {"$gtt": 1}}, r"did you mean \$gt"),
        ({"width": {"gte": 1}}, r"unknown operator 'gte'"),
        ({"$nor": []}, r"\$or"),
        ({"$or": {}}, "takes a list of filters"),
        ({"width": {"$in": 5}}, r"\$in takes list"),
        ({"width": {"$exists": 1}}, r"\$exists takes bool"),
        ({"width": [1]}, r"\$eq takes"),
        ("[" * 100_000, "not valid JSON"),
    ],
)
def test_what_is_no_filter_is_told(given, told):
    with pytest.raises(ValidationError, match=told):
        PARSE(given)


def test_a_filter_is_bounded():
    tree = {"a": 1}
    for _ in range(50):
        tree = {"$not": tree}
    with pytest.raises(ValidationError, match="nested deeper"):
        PARSE(tree)
