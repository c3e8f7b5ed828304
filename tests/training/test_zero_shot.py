"""Classes, prompts and labels are read with care; the vectors are open_clip's."""

import open_clip
import pytest
import torch

from clipray import clip
from clipray.errors import InputError
from clipray.manifest import ModelSource
from clipray.samples import Entry
from clipray.training.peers import Peers
from clipray.training.zero_shot import (
    ZeroShotConfig,
    build_classifier,
    class_numbers,
    find_classes,
    label_of,
    read_classes,
    read_templates,
    tell_unknown,
    zero_shot_metrics,
)
from tests.threads import on_ranks

NAMES = [f"thing {number}" for number in range(23)]
PROMPTS = ("a photo of a {}.", "the {} in the snow")


def config(**options):
    return ZeroShotConfig(input=("photos",), **options)


def write(folder, *lines):
    path = folder / "list.txt"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_classes_are_names_or_labels_with_names(tmp_path):
    path = write(tmp_path, "golden_retriever", "", "n01440764\t tench ", "Kite (bird)")
    assert read_classes(path) == {
        "golden retriever": "golden retriever",
        "n01440764": "tench",
        "kite (bird)": "Kite (bird)",
    }


def test_wrong_classes_are_told_with_their_line(tmp_path):
    with pytest.raises(InputError, match=r"list\.txt, line 3: 'Cat' comes a second time; expected"):
        read_classes(write(tmp_path, "cat", "dog", "Cat"))
    with pytest.raises(InputError, match=r"list\.txt: empty; expected one class a line"):
        read_classes(write(tmp_path, "", " "))


def test_a_missing_or_binary_list_is_told(tmp_path):
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    for name in ("list.txt", "none.txt"):
        with pytest.raises(InputError, match=f"{name}: cannot be read .*expected one prompt a"):
            read_templates(tmp_path / name)


def test_templates_have_one_place_for_the_name(tmp_path):
    assert read_templates(write(tmp_path, *PROMPTS)) == PROMPTS
    for wrong in ("a photo", "{} and {}", "a {name}", "a {} {", "a {0}"):
        with pytest.raises(InputError, match=r"line 2: found .*expected a prompt with one \{\}"):
            read_templates(write(tmp_path, PROMPTS[0], wrong))


def test_without_a_file_there_are_seven_prompts():
    templates = read_templates(None)
    assert len(templates) == 7
    assert templates[0] == "itap of a {}."


def test_a_label_is_a_column_or_the_folder():
    entry = Entry("photos/red_ring/0001")
    assert label_of(entry, {}, None) == "red_ring"
    assert label_of(entry, {"kind": 3}, "kind") == "3"
    assert label_of(entry, {"kind": None}, "kind") == label_of(entry, {}, "kind") == ""


def test_labels_find_their_class_however_they_are_written(tmp_path):
    path = write(tmp_path, "red ring", "green_cross")
    classes = find_classes(config(classes=path), ["Red_Ring", "moon"])
    labels = ["green cross", "Red_Ring", "moon", ""]
    assert class_numbers(labels, classes).tolist() == [1, 0, -1, -1]
    assert tell_unknown(labels, classes) == (
        "2 of 4 images have a label that is no class, such as '', 'moon'"
    )


def test_without_a_file_the_labels_are_the_classes():
    assert list(find_classes(config(), ["b_b", "a", "", "b b"]).values()) == ["a", "b b"]


def test_labels_that_are_no_class_at_all_stop_the_run(tmp_path):
    with pytest.raises(InputError, match="their folder says 'moon', expected such as 'cat'"):
        find_classes(config(classes=write(tmp_path, "cat")), ["moon"])
    with pytest.raises(InputError, match="column 'kind' says ''"):
        find_classes(config(label="kind"), ["", ""])


@pytest.fixture(scope="module")
def opened(model):
    return clip.load(ModelSource(name=str(model)))


def test_class_vectors_are_open_clips_however_many_ranks(opened):
    def build(peers):
        with torch.no_grad():
            return build_classifier(opened.module, opened.tokenize, NAMES, PROMPTS, peers)

    expected = open_clip.build_zero_shot_classifier(
        opened.module, opened.tokenize, NAMES, PROMPTS
    ).T
    alone = build(Peers())
    assert alone.dtype == torch.float32
    torch.testing.assert_close(alone, expected)
    assert all(torch.equal(found, alone) for found in on_ranks(2, build))


def test_the_first_five_count_among_more_classes_only():
    places = torch.tensor([0, 0, 3, 7])
    assert zero_shot_metrics(places, 5) == {"zero_shot_top1": 0.5}
    assert zero_shot_metrics(places, 6) == {"zero_shot_top1": 0.5, "zero_shot_top5": 0.75}
