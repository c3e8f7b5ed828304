"""Detectors and aesthetic vectors are read from files that are not trusted."""

import pickle

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipray.errors import ClipRayError, InputError, MismatchError
from clipray.matches import Match, Matches
from clipray.serve import raters
from clipray.serve.raters import Detector, RaterOptions, Raters, unflagged

DIM = 4
ROWS = np.eye(DIM, dtype=np.float32)


def saved(path, array):
    np.save(path, array)
    return path


def linear(path, weight, bias):
    save_file({"weight": np.float32(weight), "bias": np.float32(bias)}, path)
    return path


def left(detectors, rows=ROWS):
    found = Matches(tuple(Match(place, vector=row) for place, row in enumerate(rows)))
    return unflagged(found, detectors).ids


@pytest.mark.parametrize("shape", [(DIM,), (1, DIM)])
def test_a_linear_layer_flags_what_is_above_zero(shape, tmp_path):
    file = linear(tmp_path / "safety.safetensors", np.reshape([1, 0.4, 0.6, 0], shape), [-0.5])
    assert left([Detector.open(file, DIM)]) == [1, 3]
    assert left([Detector.open(file, DIM)], 0.9 * ROWS) == [1, 3]  # they are scaled to unit length


def test_two_prompts_flag_what_is_nearer_to_the_second(tmp_path):
    prompts = np.array([[0.5, 0.2, 0, 0], [0.2, 0.5, 0, 0.1]], np.float16)
    assert left([Detector.open(saved(tmp_path / "violence.npy", prompts), DIM)]) == [0, 2]


def test_what_any_detector_flags_is_left_out():
    assert left([Detector(ROWS[0]), Detector(ROWS[2])]) == [1, 3]
    assert left([Detector(ROWS[0])], ROWS[:0]) == []


def test_only_what_is_configured_is_read(tmp_path):
    assert Raters.open(RaterOptions(), DIM) == Raters()
    file = saved(tmp_path / "scores.npy", np.ones((10, DIM)))
    found = Raters.open(RaterOptions(aesthetic=file), DIM)
    assert (found.safety, found.violence, found.aesthetic.shape) == (None, None, (10, DIM))


def test_a_folder_of_ratings_is_one_vector_a_score(tmp_path):
    for score in range(12):
        saved(tmp_path / f"rating{score}.npy", np.full(DIM, score, np.float32))
    found = Raters.open(RaterOptions(aesthetic=tmp_path), DIM).aesthetic
    assert found[:, 0].tolist() == list(range(12))


@pytest.mark.parametrize("array", [np.ones((2, 5)), np.ones((2, 3))])
def test_a_file_for_another_model_is_refused_with_both_sizes(array, tmp_path):
    file = saved(tmp_path / "violence.npy", array)
    told = f"violence.npy: holds vectors of {array.shape[1]} dimensions, the model gives {DIM}"
    for options in (RaterOptions(violence=file), RaterOptions(aesthetic=file)):
        with pytest.raises(MismatchError, match=told):
            Raters.open(options, DIM)


@pytest.mark.parametrize(
    "array",
    [
        np.ones((3, DIM)),
        np.ones(DIM),
        np.ones((2, DIM), np.int64),
        np.ones((2, DIM), np.complex64),
        np.full((2, DIM), np.nan),
        np.ones((2, DIM, 1)),
    ],
)
def test_another_array_is_no_pair_of_prompts(array, tmp_path):
    with pytest.raises(ClipRayError, match=r"a\.npy: (has shape|holds)"):
        Detector.open(saved(tmp_path / "a.npy", array), DIM)


def test_nothing_is_unpickled(tmp_path):
    file = tmp_path / "a.npy"
    np.save(file, np.array([[Canary()] * DIM] * 2), allow_pickle=True)
    with pytest.raises(InputError, match=r"a\.npy: cannot be read"):
        Detector.open(file, DIM)
    file.write_bytes(Canary.pickled())
    with pytest.raises(InputError, match=r"a\.npy: cannot be read"):
        Detector.open(file, DIM)


def test_a_header_that_lies_costs_no_memory(tmp_path):
    whole = saved(tmp_path / "a.npy", np.ones((2, DIM))).read_bytes()
    big = whole.replace(b"(2, 4), }        ", b"(2, 400000000), }")
    assert len(big) == len(whole)
    (tmp_path / "c.npy").write_bytes(big)
    (tmp_path / "d.npy").write_bytes(whole[:70])
    (tmp_path / "e.npy").write_bytes(b"PK\x03\x04" + whole)
    for name in "cde":
        with pytest.raises(InputError, match=f"{name}.npy: cannot be read"):
            Detector.open(tmp_path / f"{name}.npy", DIM)


def test_damaged_safetensors_and_other_tensors_are_refused(tmp_path):
    file = linear(tmp_path / "a.safetensors", np.ones((1, DIM)), [0])
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="cannot be read as safetensors"):
        Detector.open(file, DIM)
    save_file({"layers.0.weight": np.ones((1, DIM), np.float32)}, file)
    with pytest.raises(InputError, match=r"layers\.0\.weight.+expected weight \(1, 4\)"):
        Detector.open(file, DIM)
    save_file({"weight": np.ones((1, DIM), np.float32), "bias": np.ones(2, np.float32)}, file)
    with pytest.raises(InputError, match="expected"):
        Detector.open(file, DIM)


def test_missing_and_huge_files_are_refused(tmp_path, monkeypatch):
    for name in ("a.npy", "a.safetensors"):
        with pytest.raises(InputError, match="no such file"):
            Detector.open(tmp_path / name, DIM)
    with pytest.raises(InputError, match="rating0"):
        Raters.open(RaterOptions(aesthetic=tmp_path), DIM)
    file = saved(tmp_path / "a.npy", np.ones((2, DIM)))
    monkeypatch.setattr(raters, "MAX_BYTES", 100)
    with pytest.raises(InputError, match="at most 100"):
        Detector.open(file, DIM)


class Canary:
    """Ends the test when it is unpickled."""

    def __reduce__(self):
        return pytest.exit, ("unpickled",)

    @classmethod
    def pickled(cls):
        return pickle.dumps(cls())
