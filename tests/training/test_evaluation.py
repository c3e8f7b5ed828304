"""What is measured is the model as vanilla open_clip runs it, on any number of ranks."""

import logging

import open_clip
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from clipray import clip, uri
from clipray.errors import InputError
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.training.evaluation import Evaluation, EvaluationConfig
from clipray.training.peers import Peers
from clipray.training.zero_shot import ZeroShotConfig
from tests.drawing import COLOURS, drawings, write_folder


@pytest.fixture(scope="module")
def opened(model):
    return clip.load(ModelSource(name=str(model)))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """The drawings in folders by colour, with one bad image, and one of no known colour."""
    root = tmp_path_factory.mktemp("kinds")
    for number, drawing in enumerate(drawings()):
        path = root / drawing.caption.split()[2] / f"{number:02d}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawing.png)
        path.with_suffix(".txt").write_text(drawing.caption, encoding="utf-8")
    (root / "red" / "bad.png").write_bytes(b"no picture")
    (root / "red" / "bad.txt").write_text("a bad one", encoding="utf-8")
    (root / "pink").mkdir()
    (root / "pink" / "plain.png").write_bytes(drawings()[0].png)  # and without a caption
    return root


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    path = tmp_path_factory.mktemp("lists") / "colours.txt"
    path.write_text("\n".join(COLOURS), encoding="utf-8")
    return path


def evaluation(opened, config, peers=Peers(), **options):  # noqa: B008  frozen
    return Evaluation(config, opened, peers, pixels=pixel_reader(opened.preprocess), **options)


def run(opened, config, **options):
    return evaluation(opened, config, **options).run(opened.module)


def vanilla(model, photos, batch):
    """open_clip's features of all pairs, and its loss, batch by batch."""
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{model}")
    files = sorted(photos.rglob("*.png"))
    pictures = torch.stack([preprocess(Image.open(file)) for file in files])
    tokens = tokenize([file.with_suffix(".txt").read_text() for file in files])
    with torch.no_grad():
        images, texts, scale = module.eval()(pictures, tokens)
    pairs = list(zip(images.split(batch), texts.split(batch), strict=True))
    losses = [open_clip.ClipLoss()(*pair, scale).item() * len(pair[0]) for pair in pairs]
    return images, texts, sum(losses) / len(files)


def recall(queries, candidates, k):
    order = (queries @ candidates.T).argsort(dim=1, descending=True)[:, :k]
    return (order == torch.arange(len(queries))[:, None]).any(1).double().mean().item()


def test_metrics_are_those_of_vanilla_open_clip(opened, model, photos):
    found = run(opened, EvaluationConfig(input=(str(photos),), batch_size=12))
    images, texts, loss = vanilla(model, photos, 12)
    for k in (1, 5, 10):
        assert found[f"image_to_text_R@{k}"] == pytest.approx(recall(images, texts, k))
        assert found[f"text_to_image_R@{k}"] == pytest.approx(recall(texts, images, k))
    assert found["clip_val_loss"] == pytest.approx(loss, rel=1e-4)
    assert (found["num_samples"], found["evaluation_rejected"]) == (40, 0)
    assert found["text_to_image_R@1"] > 0.3


def test_zero_shot_is_that_of_vanilla_open_clip(opened, model, kinds, colours, caplog):
    config = ZeroShotConfig(input=(str(kinds),), classes=colours)
    with caplog.at_level(logging.WARNING):
        found = run(opened, EvaluationConfig(zero_shot=config))
    files = [file for file in sorted(kinds.rglob("*.png")) if file.with_suffix(".txt").exists()]
    files.remove(kinds / "red" / "bad.png")
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    classifier = open_clip.build_zero_shot_classifier(
        module.eval(),
        open_clip.get_tokenizer(f"local-dir:{model}"),
        list(COLOURS),
        open_clip.SIMPLE_IMAGENET_TEMPLATES,
    )
    with torch.no_grad():
        images = module.encode_image(torch.stack([preprocess(Image.open(f)) for f in files]))
    guesses = (normalize(images, dim=-1) @ classifier).argmax(1)
    right = [list(COLOURS)[guess] == file.parent.name
             for guess, file in zip(guesses.tolist(), files, strict=True)]  # fmt: skip
    assert found["zero_shot_top1"] == pytest.approx(sum(right) / 40)
    assert "zero_shot_top5" not in found
    counts = [found[f"zero_shot_{name}"] for name in ("samples", "unknown", "rejected")]
    assert counts == [40, 1, 1]
    assert "1 of 41 images have a label that is no class, such as 'pink'" in caplog.text
    assert "kinds" in caplog.text
    assert "red/bad.png: not a readable image" in caplog.text


def both(kinds, colours):
    zero_shot = ZeroShotConfig(input=(str(kinds),), classes=colours)
    return EvaluationConfig(input=(str(kinds),), batch_size=5, zero_shot=zero_shot)


def measured(peers, model, config):
    """What a rank measures; then rank 1 fails alone."""
    opened = clip.load(ModelSource(name=model))
    found = run(opened, config, peers=peers)

    def fail(data):
        raise InputError("a rank alone")

    pixels = fail if peers.rank == 1 else pixel_reader(opened.preprocess)
    with pytest.raises(InputError, match="a rank alone"):
        Evaluation(config, opened, peers, pixels=pixels).run(opened.module)
    return found


def test_two_ranks_measure_what_one_does_and_fail_together(
    two_ranks, opened, model, kinds, colours
):
    config = both(kinds, colours)
    alone = run(opened, config)
    assert alone["evaluation_rejected"] == 2
    assert two_ranks(measured, str(model), config) == [alone, alone]


def test_every_part_of_the_module_comes_back_in_its_mode(opened, photos):
    module = opened.module.train()
    module.visual.eval()
    before = {name: part.training for name, part in module.named_modules()}
    assert set(before.values()) == {True, False}
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    try:
        run(opened, EvaluationConfig(input=(str(photos),)))
        assert {name: part.training for name, part in module.named_modules()} == before
    finally:
        module.eval()
    for name, value in module.state_dict().items():
        assert torch.equal(value, weights[name])
    assert torch.is_grad_enabled()


def test_batches_decide_the_loss_alone(opened, shards):
    whole = run(opened, EvaluationConfig(input=(str(shards),)))
    small = run(opened, EvaluationConfig(input=(str(shards),), batch_size=7))
    assert small.pop("clip_val_loss") < whole.pop("clip_val_loss")
    assert small == pytest.approx(whole)


def test_a_limit_takes_samples_from_all_over(opened, kinds, tmp_path):
    last = tmp_path / "last.txt"
    last.write_text("yellow", encoding="utf-8")
    zero_shot = ZeroShotConfig(input=(str(kinds),), classes=last)
    config = EvaluationConfig(input=(str(kinds),), limit=8, zero_shot=zero_shot)
    found = run(opened, config)
    assert found["num_samples"] + found["evaluation_rejected"] == 8
    assert (found["zero_shot_samples"], found["zero_shot_unknown"]) == (1, 6)


def test_bf16_measures_nearly_the_same(opened, kinds, colours):
    config = both(kinds, colours)
    full, half = run(opened, config), run(opened, config, autocast=torch.bfloat16)
    assert half["clip_val_loss"] == pytest.approx(full["clip_val_loss"], abs=0.05)
    assert half["clip_val_loss"] != full["clip_val_loss"]
    assert half["zero_shot_top1"] == pytest.approx(full["zero_shot_top1"], abs=0.1)


def test_the_text_may_stand_in_another_column(opened, shards):
    found = run(opened, EvaluationConfig(input=(str(shards),), caption="url"))
    assert found["num_samples"] == 40
    assert found["text_to_image_R@1"] < 0.2
    with pytest.raises(InputError, match=r"nothing to evaluate; shards/000000000: no text"):
        run(opened, EvaluationConfig(input=(str(shards),), caption="none"))


def test_samples_are_listed_once_and_not_before_the_first_run(opened, tmp_path):
    made = evaluation(opened, EvaluationConfig(input=(str(tmp_path / "photos"),)))
    photos = write_folder(tmp_path / "photos", count=8)
    first = made.run(opened.module)
    (photos / "even" / "late.png").write_bytes(drawings()[0].png)
    assert made.run(opened.module) == first


def test_a_rank_alone_fetches_remote_shards_and_reads_no_sample_by_itself(
    opened, shards, tmp_path, monkeypatch
):
    store = uri.at(f"memory://{tmp_path.name}/shards")
    store.mkdir(parents=True, exist_ok=True)
    for path in shards.iterdir():
        (store / path.name).write_bytes(path.read_bytes())
    local = run(opened, EvaluationConfig(input=(str(shards),)))
    ranged, asked = uri._ranged, []
    monkeypatch.setattr(uri, "_ranged", lambda path, *at: asked.append(path) or ranged(path, *at))
    assert run(opened, EvaluationConfig(input=(str(store),))) == local
    assert not [path for path in asked if path.suffix == ".tar"]


def test_nothing_asked_nothing_measured(opened):
    assert run(opened, EvaluationConfig()) == {}
    assert not EvaluationConfig().due(0, 1)


def test_evaluations_are_due_every_so_many_epochs_and_at_the_end():
    config = EvaluationConfig(input=("photos",), every_epochs=3)
    assert [epoch for epoch in range(8) if config.due(epoch, 8)] == [2, 5, 7]


def test_a_wrong_configuration_is_told_before_workers_start(tmp_path, photos):
    EvaluationConfig(input=(str(photos),), zero_shot=ZeroShotConfig(input=(str(photos),))).check()
    with pytest.raises(InputError, match="no such folder"):
        EvaluationConfig(input=(str(tmp_path / "none"),)).check()
    missing = ZeroShotConfig(input=(str(photos),), classes=tmp_path / "none.txt")
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        EvaluationConfig(zero_shot=missing).check()


def test_paths_become_those_of_any_process(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    zero_shot = ZeroShotConfig(input=("a=kinds",), classes="c.txt", templates="t.txt")
    found = EvaluationConfig(input=("photos", "memory://x/*.tar"), zero_shot=zero_shot).absolute()
    assert found.input == (str(tmp_path / "photos"), "memory://x/*.tar")
    assert found.zero_shot == ZeroShotConfig(
        input=(f"a={tmp_path / 'kinds'}",),
        classes=tmp_path / "c.txt",
        templates=tmp_path / "t.txt",
    )
