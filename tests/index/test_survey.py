"""What enters an index: usable vectors, and of rows with one key the first that is usable."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.embeddings import Parts
from clipray.errors import DamagedError
from clipray.index.survey import NOT_UNIT, REPEATED, PartSurvey, select, survey_part
from clipray.index.table import row_ids
from tests.handmade import cut_parts, random_halves, write_embeddings

NOTHING = np.empty((0, 16), np.float16)


def surveyed(root, parts, share=0.0):
    opened = Parts.open(write_embeddings(root, parts))
    return [survey_part(root / "index", opened, number, share) for number in opened]


@pytest.mark.parametrize(
    ("spoil", "usable"),
    [
        (lambda vector: vector * np.float16(1), True),
        (lambda vector: vector * np.float16(0.9955), True),  # as float16 rounds
        (lambda vector: vector * np.float16(0.95), False),
        (lambda vector: vector * np.float16(2), False),
        (lambda vector: vector * np.float16(0), False),
        (lambda vector: np.where(np.arange(16) == 5, np.float16(np.nan), vector), False),
        (lambda vector: np.where(np.arange(16) == 0, np.float16(np.inf), vector), False),
        (lambda vector: np.where(np.arange(16) == 0, np.float16(-np.inf), vector), False),
    ],
)
def test_only_finite_unit_vectors_are_usable(tmp_path, spoil, usable):
    vectors = random_halves(3)
    vectors[1] = spoil(vectors[1])
    (survey,) = surveyed(tmp_path, cut_parts(vectors, 1), share=1.0)
    assert survey.usable.tolist() == [True, usable, True]
    assert len(survey.sample) == 2 + usable
    selection = select([survey])
    assert selection.rejected == ({0: {}} if usable else {0: {NOT_UNIT: 1}})
    assert selection.rows == 2 + usable


def test_the_first_usable_row_of_a_key_enters(tmp_path):
    first, second = random_halves(4, seed=1), random_halves(4, seed=2)
    first[1] = 0
    parts = [(["a", "b", "a", "c"], first), (["d", "b", "e", "a"], second)]
    selection = select(surveyed(tmp_path, parts))
    assert selection.keep[0].tolist() == [True, False, False, True]
    assert selection.keep[1].tolist() == [True, True, True, False]
    assert selection.rejected == {0: {NOT_UNIT: 1, REPEATED: 1}, 1: {REPEATED: 1}}
    assert selection.reasons() == {NOT_UNIT: 1, REPEATED: 2}
    assert selection.rows == 5


def test_a_key_without_a_usable_row_does_not_enter(tmp_path):
    parts = [(["a", "a", "b"], random_halves(3) * np.float16([[0], [2], [1]]))]
    selection = select(surveyed(tmp_path, parts))
    assert selection.keep[0].tolist() == [False, False, True]
    assert selection.reasons() == {NOT_UNIT: 2}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=8), min_size=1),
    st.randoms(use_true_random=False),
)
def test_selecting_is_what_a_loop_would_do(parts, random):
    surveys = [
        PartSurvey(
            part=3 * number,
            ids=row_ids(str(key) for key, _ in rows),
            usable=np.array([usable for _, usable in rows], bool),
            sample=NOTHING,
            schema=pa.schema([("image_path", pa.string())]),
        )
        for number, rows in enumerate(parts)
    ]
    seen, expected = set(), {}
    for number, rows in enumerate(parts):
        expected[3 * number] = [usable and not (k in seen or seen.add(k)) for k, usable in rows]
    random.shuffle(surveys)  # as they come from workers
    selection = select(surveys)
    assert {part: keep.tolist() for part, keep in selection.keep.items()} == expected
    left_out = sum(len(rows) for rows in parts) - selection.rows
    assert sum(selection.reasons().values()) == left_out


@pytest.mark.parametrize("share", [0.0, 0.1, 0.34, 1.0])
def test_a_share_of_the_usable_vectors_is_taken_along(tmp_path, share):
    vectors = random_halves(100)
    vectors[::10] = 0
    (survey,) = surveyed(tmp_path, cut_parts(vectors, 1), share)
    usable = {row.tobytes() for row in vectors[survey.usable]}
    taken = [row.tobytes() for row in survey.sample]
    assert len(set(taken)) == len(taken) == np.ceil(90 * share)
    assert set(taken) <= usable


def test_small_parts_give_their_share_as_well(tmp_path):
    surveys = surveyed(tmp_path, cut_parts(random_halves(40), 20), share=0.2)
    assert sum(len(survey.sample) for survey in surveys) >= 8


def test_a_changed_part_is_not_surveyed(tmp_path):
    parts = Parts.open(write_embeddings(tmp_path, cut_parts(random_halves(4), 2)))
    path = tmp_path / "img_emb" / "img_emb_00001.npy"
    path.write_bytes(path.read_bytes()[:-1] + b"\x00")
    assert survey_part(tmp_path, parts, 0, 0.0).usable.all()
    with pytest.raises(DamagedError, match=r"img_emb_00001\.npy"):
        survey_part(tmp_path, parts, 1, 0.0)
