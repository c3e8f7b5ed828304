"""Searching in process, the way the command does."""

import numpy as np
import pytest

from clipray import clip
from clipray.errors import ImageError, InputError, MismatchError
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.query import Query
from clipray.search import SearchConfig, find, search


def test_the_command_answers_as_the_library_does(flat_index, encoder):
    report = search(SearchConfig(index=flat_index, text="a large blue square", k=5))
    (expected,) = Index.open(flat_index).search(encoder.encode_texts(["a large blue square"]), k=5)
    assert [row["id"] for row in report.matches] == [str(one) for one in expected.ids]
    assert [row["score"] for row in report.matches] == [match.score for match in expected]


def test_a_key_finds_itself_without_a_model(flat_index):
    report = search(SearchConfig(index=flat_index, key="shards/000010003", k=1))
    assert report.matches[0]["key"] == "shards/000010003"
    assert "shards/000010003" in report.summary()


def test_a_picture_finds_itself(flat_index, photos):
    report = search(SearchConfig(index=flat_index, image=photos / "odd/0001.png", k=1))
    assert report.matches[0]["caption"] == "a small green circle"
    assert report.matches[0]["score"] == pytest.approx(1, abs=1e-3)


def test_terms_add_up(flat_index, encoder):
    index = Index.open(flat_index)
    terms = [{"key": "shards/000000000"}, {"text": "a ring", "weight": -0.3}]
    (first, second) = index.find("shards/000000000"), encoder.encode_texts(["a ring"])[0]
    mixed = first / np.linalg.norm(first) - 0.3 * second
    (expected,) = index.search(mixed[None], k=5)
    assert find(index, encoder, Query(query=terms, k=5)).ids == expected.ids


def test_no_match_is_said(flat_index):
    report = search(SearchConfig(index=flat_index, key="shards/000000000", threshold=1.5))
    assert report.summary() == "no match"


def test_a_file_that_is_no_image_is_refused(flat_index, photos, tmp_path):
    with pytest.raises(ImageError, match="not a readable image"):
        search(SearchConfig(index=flat_index, image=photos / "even/0000.txt"))
    with pytest.raises(InputError, match="no such image file"):
        search(SearchConfig(index=flat_index, image=tmp_path / "none.png"))


def test_a_model_that_does_not_belong_is_refused(flat_index, architecture, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    clip.save(clip.create(ModelSource(name=str(architecture)), seed=1), folder, {})
    with pytest.raises(MismatchError, match=r"other \(.+ written with"):
        search(SearchConfig(index=flat_index, text="a", model=str(folder)))
