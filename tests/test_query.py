"""A request says one thing, and its terms become one unit vector."""

import base64

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from clipray.errors import QueryError
from clipray.query import MAX_K, MAX_TERMS, MAX_TEXT_CHARACTERS, Query, Term, combine

FINITE = st.floats(-100, 100, width=32).filter(lambda value: abs(value) > 1e-3)


def test_one_term_however_it_is_given():
    image = base64.b64encode(b"picture").decode()
    assert Query(text="a").terms == (Term(text="a"),)
    assert Query(image=image).terms[0].image == b"picture"
    assert Query(embedding=(1, 2)).terms == (Term(embedding=(1.0, 2.0)),)
    many = Query(query=({"key": "s/1"}, {"text": "a", "weight": -0.5}))
    assert many.terms == (Term(key="s/1"), Term(text="a", weight=-0.5))


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({}, "exactly one"),
        ({"text": "a", "key": "b"}, "exactly one"),
        ({"text": "a", "query": [{"text": "b"}]}, "exactly one"),
        ({"query": [{}]}, "exactly one"),
        ({"query": [{"text": "a", "key": "b"}]}, "exactly one"),
        ({"query": [{"text": "a", "weight": float("nan")}]}, "finite"),
        ({"query": [{"text": "a"}] * (MAX_TERMS + 1)}, "at most"),
        ({"text": "a" * (MAX_TEXT_CHARACTERS + 1)}, "at most"),
        ({"text": 5}, "string"),
        ({"image": "not base64!"}, "base64"),
        ({"embedding": [1, float("inf")]}, "finite"),
        ({"embedding": [1, float("nan")]}, "finite"),
        ({"text": "a", "k": 0}, "greater"),
        ({"text": "a", "k": -1}, "greater"),
        ({"text": "a", "k": MAX_K + 1}, "less"),
        ({"text": "a", "k": "5"}, "integer"),
        ({"text": "a", "k": True}, "integer"),
        ({"text": "a", "k": 5.0}, "integer"),
        ({"text": "a", "threshold": float("inf")}, "finite"),
        ({"text": "a", "modality": "sound"}, "image"),
        ({"text": "a", "top": 3}, "not permitted"),
    ],
)
def test_wrong_requests_are_refused(request_, told):
    with pytest.raises(ValidationError, match=told):
        Query.model_validate(request_)


def test_an_empty_text_is_a_text():
    assert Query(text="").terms == (Term(text=""),)


@settings(max_examples=100, deadline=None)
@given(arrays(np.float32, (3, 8), elements=FINITE), st.lists(FINITE, min_size=3, max_size=3))
def test_the_sum_of_unit_vectors_is_a_unit_vector(vectors, weights):
    wide = vectors.astype(np.float64)
    total = np.array(weights) @ (wide / np.linalg.norm(wide, axis=1, keepdims=True))
    if np.linalg.norm(total) < 1e-3:
        return
    found = combine(list(vectors), weights)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, total / np.linalg.norm(total), atol=1e-3)


def test_length_of_a_term_does_not_matter_and_weights_do():
    a, b = np.array([1, 0], np.float32), np.array([0, 1], np.float32)
    np.testing.assert_allclose(combine([a * 1000, b / 1000], [1, 1]), [0.5**0.5] * 2, rtol=1e-6)
    np.testing.assert_array_equal(combine([a], [7.5]), a)
    np.testing.assert_array_equal(combine([a], [-2.0]), -a)


@pytest.mark.parametrize(
    ("vectors", "weights"),
    [
        ([[0, 0]], [1]),
        ([[np.nan, 1]], [1]),
        ([[np.inf, 1]], [1]),
        ([[1, 0], [1, 0]], [1, -1]),
        ([[1, 0]], [0]),
        ([[1, 0], [0, 0]], [1, 1]),
    ],
)
def test_what_points_nowhere_is_refused(vectors, weights):
    with pytest.raises(QueryError, match="points nowhere"):
        combine([np.array(vector, np.float32) for vector in vectors], weights)


@pytest.mark.parametrize(
    "request_",
    [
        {"text": "a", "columns": [1] * 5000},
        {"embedding": ["x"] * 5000},
        {"query": [1] * 5000},
    ],
)
def test_of_many_wrong_items_the_first_is_told(request_):
    with pytest.raises(ValidationError) as refused:
        Query.model_validate(request_)
    assert refused.value.error_count() <= 2
