"""Searching in process, the way the command does."""

import numpy as np
import pytest

from clipray import clip
from clipray.duplicates import asks, without_duplicates
from clipray.errors import ImageError, InputError, MismatchError, QueryError
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.matches import Match, Matches
from clipray.query import Query
from clipray.search import SearchConfig, SearchReport, find, search


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


def test_a_caption_cannot_command_the_terminal():
    row = {"id": "1", "score": 0.5, "key": "a\x9b2J", "caption": "b\x1b]0;c\x07\nd\r漢 🦖"}
    shown = SearchReport(version=1, matches=(row,)).summary()
    assert shown == "0.5000  a\\x9b2J  b\\x1b]0;c\\x07\\nd\\r漢 🦖"


def test_terms_add_up(flat_index, encoder):
    index = Index.open(flat_index)
    terms = [{"key": "shards/000000000"}, {"text": "a ring", "weight": -0.3}]
    (first, second) = index.find("shards/000000000"), encoder.encode_texts(["a ring"])[0]
    mixed = first / np.linalg.norm(first) - 0.3 * second
    (expected,) = index.search(mixed[None], k=5)
    assert find(index, encoder, Query(query=terms, k=5)).ids == expected.ids


def test_near_duplicates_make_room_for_others(flat_index, encoder):
    index, text = Index.open(flat_index), "a large red ring"
    (everything,) = index.search(encoder.encode_texts([text]), k=40, vectors=True)
    expected = without_duplicates(everything, 0.5, 6)
    found = find(index, encoder, Query(text=text, k=6, deduplicate=0.5))
    assert found.ids == expected.ids != everything.ids[:6]
    assert [match.vector for match in found] == [None] * 6
    command = search(SearchConfig(index=flat_index, text=text, k=6, deduplicate=0.5))
    assert [int(row["id"]) for row in command.matches] == expected.ids


def test_vectors_come_when_they_are_asked_for(flat_index):
    index, key = Index.open(flat_index), "shards/000000000"
    for similarity in (None, 0.9):
        query = Query(key=key, k=1, embeddings=True, deduplicate=similarity)
        (match,) = find(index, None, query)
        assert np.array_equal(match.vector, index.find(key))


class Alike:
    """An index of 50 rows that are alike, and worse ones that are not."""

    def __init__(self):
        self.asked = []

    def find(self, key):
        raise NotImplementedError

    def search(self, queries, k, *_, vectors):
        self.asked.append(k)
        directions = np.eye(200, dtype=np.float32)[[0] * 50 + list(range(50, 200))]
        return [Matches(tuple(Match(row, vector=directions[row]) for row in range(k)))]


def test_more_are_asked_for_once_when_most_are_duplicates():
    index = Alike()
    found = find(index, None, Query(embedding=(1.0, 0.0), k=2, deduplicate=0.9))
    assert found.ids == [0, 50]
    assert tuple(index.asked) == asks(2)


def test_an_address_is_for_a_service(flat_index, encoder):
    with pytest.raises(QueryError, match="only a service"):
        find(Index.open(flat_index), encoder, Query(image_url="http://127.0.0.1/a.png"))


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
