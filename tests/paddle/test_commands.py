"""`clipray paddle train`, then infer and export of what it made."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from clipray.cli import main
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.manifest import ModelSource
from clipray.training.metrics import read_metrics
from tests.conftest import ARCHITECTURE
from tests.drawing import drawings, write_shards
from tests.paddle.leaves import CLIP_YAML

CPU = EncoderOptions(device="cpu", precision="fp32")
SPLITS = ("DataLoader.Train", "DataLoader.Eval")

# A model as small as the keys of the file allow: their vectors, pictures and texts.
SMALL = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 64, "patch_size": 32, "layers": 1, "width": 32, "head_width": 16},
    "text_cfg": ARCHITECTURE["text_cfg"] | {"context_length": 77},
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Data with two splits, a picture that is wide, texts, and a tiny model_cfg."""
    home = tmp_path_factory.mktemp("home")
    write_shards(home / "mscoco" / "train")
    write_shards(home / "mscoco" / "eval", 10)
    (home / "tiny.json").write_text(json.dumps(SMALL))
    (home / "photos").mkdir()
    drawing = home / "photos" / "ring.png"
    drawing.write_bytes(drawings(1)[0].png)
    Image.open(drawing).resize((90, 30)).save(home / "photos" / "wide.png")
    (home / "photos" / "torn.jpg").write_bytes(b"\xff\xd8\xff")
    (home / "texts.txt").write_text("a red circle\n\n一只狗\n", encoding="utf-8")
    return home


def run(capsys, *command, **overrides):
    """Exit code and stdout of a command on the file; `__` stands for a dot of a key."""
    given = [f"{key.replace('__', '.')}={value}" for key, value in overrides.items()]
    options = [part for override in given for part in ("-o", override)]
    code = main(["paddle", *command, "-c", str(CLIP_YAML), *options])
    return code, capsys.readouterr().out


def paths(home):
    return {f"{split}.dataset.root_path": home / "mscoco" for split in SPLITS} | {
        "Arch.name": home / "tiny.json",
        "Global.output_dir": home / "output",
        "Global.pretrained_model": "null",
    }


@pytest.fixture(scope="module")
def trained(home, ray_session):
    """What the command printed, and its model; no key but paths and amounts differs."""
    amounts = {"Global.epochs": 2, "Optimizer.lr.warmup_epoch": 1, "Global.use_visualdl": True}
    small = {"DataLoader.Train.sampler.batch_size": 20, "DataLoader.Eval.sampler.batch_size": 4}
    quick = {f"{split}.loader.num_workers": 0 for split in SPLITS}
    given = {**paths(home), **amounts, **small, **quick}
    options = [part for key, value in given.items() for part in ("-o", f"{key}={value}")]
    assert main(["paddle", "train", "-c", str(CLIP_YAML), *options]) == 0
    return home / "output" / "model"


@pytest.fixture(scope="module")
def encoder(trained):
    return open_encoder(ModelSource(name=str(trained)), CPU)


def test_it_trains_evaluates_and_saves_as_the_file_says(trained, home):
    lines = read_metrics(trained / "metrics.jsonl")
    assert [line["epoch"] for line in lines if "clip_val_loss" in line] == [0, 1]
    assert {line["num_samples"] for line in lines if "num_samples" in line} == {10}
    assert [line["lr"] for line in lines if "loss" in line] == pytest.approx(
        [2.0025e-4, 4e-4, 4e-4, 2.005e-4]
    )
    steps = sorted(path.name for path in (home / "output" / "run" / "checkpoints").iterdir())
    assert steps == ["step-00000002", "step-00000004"]
    assert any((home / "output" / "run" / "tensorboard").iterdir())


def test_the_model_sees_pictures_as_the_file_has_them(trained, encoder, home):
    told = json.loads((trained / "open_clip_config.json").read_text())
    assert told["model_cfg"]["vision_cfg"]["image_size"] == 224
    assert told["preprocess_cfg"]["resize_mode"] == "squash"
    wide = Image.open(home / "photos" / "wide.png").convert("RGB")
    squashed = wide.resize((224, 224), Image.Resampling.BICUBIC)
    pixels = encoder.pixels((home / "photos" / "wide.png").read_bytes())
    assert np.array_equal(pixels, np.asarray(squashed).transpose(2, 0, 1))


def test_a_model_that_is_there_is_not_replaced(trained, home, capsys):
    code = main(["paddle", "train", "-c", str(CLIP_YAML), "-o", f"Global.output_dir={home}/output"])
    assert code == 2
    assert "choose another Global.output_dir" in capsys.readouterr().err


def test_infer_prints_vectors_of_images_and_texts_as_json(trained, encoder, home, capsys):
    wide = home / "photos" / "wide.png"
    code, out = run(capsys, "infer", **paths(home), **{"Global.infer_imgs": wide})
    (vector,) = json.loads(out).values()
    expected = encoder.encode_images([encoder.pixels(wide.read_bytes())])[0]
    assert code == 0
    assert vector == pytest.approx(expected.tolist(), abs=1e-5)
    texts = {"Global.texts": home / "texts.txt", "Global.infer_imgs": home / "photos"}
    code, out = run(capsys, "infer", **paths(home), **texts)
    found = json.loads(out)
    assert code == 3  # one picture is torn
    assert list(found) == [f"{home}/photos/ring.png", str(wide), "a red circle", "一只狗"]
    expected = encoder.encode_texts(["a red circle"])[0]
    assert found["a red circle"] == pytest.approx(expected.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({}, "Global.infer_imgs: is missing"),
        ({"Global.infer_imgs": "none.jpg"}, "no such image"),
        ({"Global.infer_imgs": "{home}/photos/torn.jpg"}, "torn.jpg"),
        ({"Global.texts": "{home}/tiny.txt"}, "no such file"),
        ({"Global.texts": os.devnull}, "a text a line"),
    ],
)
def test_infer_tells_what_it_misses(trained, home, capsys, given, told):
    given = {key: value.format(home=home) for key, value in given.items()}
    options = [part for key, value in (paths(home) | given).items()
               for part in ("-o", f"{key}={value}")]  # fmt: skip
    assert main(["paddle", "infer", "-c", str(CLIP_YAML), *options]) == 2
    assert told in capsys.readouterr().err


def test_export_writes_the_tower_that_arch_names(trained, encoder, home, capsys):
    for tower in ("image", "text"):
        folder = home / f"inference_{tower}"
        where = {"Global.save_inference_dir": folder, "Arch.clip": tower}
        code, _ = run(capsys, "export", **paths(home), **where)
        assert code == 0
        assert [path.name for path in folder.iterdir()] == [tower]
        alone = open_encoder(ModelSource(name=str(folder)), CPU)
        assert alone.identity.fingerprint == encoder.identity.fingerprint
    wide = home / "photos" / "wide.png"
    image = paths(home) | {"Global.pretrained_model": home / "inference_image"}
    code, out = run(capsys, "infer", **image, **{"Global.infer_imgs": wide})
    (vector,) = json.loads(out).values()
    expected = encoder.encode_images([encoder.pixels(wide.read_bytes())])[0]
    assert code == 0
    assert vector == pytest.approx(expected.tolist(), abs=1e-4)
    code, _ = run(capsys, "export", **paths(home), **where)
    assert code == 2
