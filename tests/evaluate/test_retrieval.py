"""Retrieval and classes: as training measures them, and by hand."""

import numpy as np
import pytest

from clipray import clip, uri
from clipray.errors import InputError
from clipray.evaluate.classes import zero_shot
from clipray.evaluate.pairs import Pairs, Reading, pairs_of_embeddings, read_pairs
from clipray.evaluate.retrieval import hardest, retrieval
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.training.evaluation import Evaluation, EvaluationConfig
from clipray.training.peers import Peers
from clipray.training.zero_shot import ZeroShotConfig
from tests.drawing import COUNT


def trained(model, **config):
    """What training says of a model."""
    opened = clip.load(ModelSource(name=str(model)))
    pixels = pixel_reader(opened.preprocess)
    return Evaluation(EvaluationConfig(**config), opened, Peers(), pixels=pixels).run(opened.module)


def test_data_are_measured_as_in_training(model, photos, encoder):
    metrics, _ = retrieval(read_pairs([str(photos)], encoder, Reading()))
    expected = trained(model, input=(str(photos),))
    shared = metrics.keys() & expected.keys()
    assert {"image_to_text_R@1", "text_to_image_mean_rank", "num_samples"} <= shared
    assert {name: metrics[name] for name in shared} == {name: expected[name] for name in shared}


def test_remote_shards_are_fetched_and_not_read_sample_by_sample(
    tmp_path, shards, encoder, monkeypatch
):
    store = uri.at(f"memory://{tmp_path.name}/shards")
    store.mkdir(parents=True, exist_ok=True)
    for path in shards.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    asked: list[str] = []
    ranged = uri._ranged
    monkeypatch.setattr(
        uri, "_ranged", lambda path, *at: asked.append(path.name) or ranged(path, *at)
    )
    remote, local = (read_pairs([str(root)], encoder, Reading()) for root in (store, shards))
    np.testing.assert_array_equal(remote.images, local.images)
    assert (remote.texts, remote.rejected) == (local.texts, ())
    assert not [name for name in asked if name.endswith(".tar")]
    assert all(place.copy is None for place in remote.places)
    few = read_pairs([str(store)], encoder, Reading(limit=3))
    assert len(few.texts) == 3
    assert [name for name in asked if name.endswith(".tar")]


def test_classes_are_measured_as_in_training(tmp_path, model, photos, encoder):
    classes, templates = tmp_path / "classes.txt", tmp_path / "templates.txt"
    classes.write_text("odd\ta red ring\neven\ta blue cross\n")
    templates.write_text("{}\na picture of {}\n")
    config = ZeroShotConfig(input=(str(photos),), classes=classes, templates=templates)
    metrics, rejected = zero_shot(config, encoder, None)
    expected = trained(model, zero_shot=config)
    assert not rejected
    assert metrics == {name: expected[name] for name in metrics}
    assert metrics["zero_shot_samples"] == COUNT


def test_embeddings_need_no_model(embeddings, photos, encoder):
    pairs = pairs_of_embeddings(embeddings, None)
    metrics, _ = retrieval(pairs)
    expected, _ = retrieval(read_pairs([str(photos)], encoder, Reading()))
    assert metrics["num_samples"] == COUNT
    assert metrics["text_to_image_R@5"] == pytest.approx(expected["text_to_image_R@5"], abs=0.06)
    assert len(pairs_of_embeddings(embeddings, 7).texts) == 7


def made(images, captions, owners):
    names, texts = tuple(f"p{n}" for n in range(len(images))), tuple(map(str, range(len(captions))))
    places = (None,) * len(images)
    floats = (np.array(images, np.float32), texts, np.array(captions, np.float32))
    return Pairs(names, places, *floats, np.array(owners))


def test_a_picture_with_several_captions_has_found_them_when_it_has_found_one():
    # The first caption of picture 0 lies with picture 1, its second one with itself.
    pairs = made(np.eye(3), [[0, 1, 0], [1, 0, 0], [0, 0.9, 0], [0, 0, 1]], [0, 0, 1, 2])
    metrics, places = retrieval(pairs)
    assert places.tolist() == [1, 0, 0, 0]
    assert metrics["text_to_image_R@1"] == 3 / 4
    assert metrics["image_to_text_R@1"] == 2 / 3  # picture 1 finds the caption of picture 0 first
    assert (metrics["num_samples"], metrics["num_captions"]) == (3, 4)


def test_the_hardest_pair_comes_first_with_its_rival():
    pairs = made(np.eye(3), [[0, 1, 0.5], [0, 1, 0], [0.1, 0, 1]], [0, 1, 2])
    hard, *rest = hardest(pairs, retrieval(pairs)[1])
    assert (hard.caption, hard.key, hard.rank, hard.rival) == ("0", "p0", 3, "p1")
    assert (hard.score, hard.rival_score) == (0, 1)
    assert [one.rank for one in rest] == [1, 1]


def test_each_line_can_be_a_caption(tmp_path, photos, encoder):
    for source in sorted(photos.rglob("*.png"))[:3]:
        (tmp_path / source.name).write_bytes(source.read_bytes())
        (tmp_path / source.name).with_suffix(".txt").write_text("a red ring\n\n a cross \n")
    pairs = read_pairs([str(tmp_path)], encoder, Reading(several=True))
    assert pairs.texts == ("a red ring", "a cross") * 3
    assert pairs.owners.tolist() == [0, 0, 1, 1, 2, 2]


def test_samples_without_a_caption_or_picture_are_named(tmp_path, photos, encoder):
    source = next(photos.rglob("*.png"))
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(source.read_bytes())
    (tmp_path / "c.png").write_bytes(b"no picture")
    (tmp_path / "a.txt").write_text("a ring")
    rejected = read_pairs([str(tmp_path)], encoder, Reading()).rejected
    assert [told.partition(": ")[0].rpartition("/")[2] for told in rejected] == ["b.png", "c.png"]
    (tmp_path / "a.txt").unlink()
    with pytest.raises(InputError, match="nothing to evaluate"):
        read_pairs([str(tmp_path)], encoder, Reading())
