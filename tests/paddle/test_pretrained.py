"""Which model `Arch.name` and `Global.pretrained_model` stand for."""

import json
import logging

import pytest

from clipray import clip
from clipray.config import load_config
from clipray.errors import ConfigError
from clipray.manifest import ModelSource
from clipray.paddle.clip_file import ClipFile
from clipray.paddle.pretrained import begun_from, finished
from tests.paddle.leaves import CLIP_YAML

DIMS = ("Loss.Train.0.ContrastiveLoss.embedding_size", "Loss.Eval.0.ContrastiveLoss.embedding_size")


def read(*overrides):
    return load_config(ClipFile, CLIP_YAML, ["Global.pretrained_model=null", *overrides])


def sized(dim):
    return [f"{key}={dim}" for key in DIMS]


@pytest.mark.parametrize(
    ("size", "patch", "dim", "width"),
    [("base", 32, 512, 768), ("base", 16, 512, 768), ("large", 14, 768, 1024),
     ("large", 16, 768, 1024)],
)  # fmt: skip
def test_the_four_models_of_paddle(size, patch, dim, width):
    name = f"CLIP_vit_{size}_patch{patch}_224_with_TextEncoder"
    found = clip.architecture_of(begun_from(read(f"Arch.name={name}", *sized(dim))).name)
    vision = found["vision_cfg"]
    assert (vision["patch_size"], vision["width"], vision["image_size"]) == (patch, width, 224)
    assert (found["embed_dim"], found["text_cfg"]["context_length"]) == (dim, 77)


def test_a_tag_gets_the_activations_that_it_was_trained_with():
    source = begun_from(read("Global.pretrained_model=openai"))
    assert source == ModelSource(name="ViT-B-32-quickgelu", pretrained="openai")
    source = begun_from(read("Global.pretrained_model=laion2b_s34b_b79k"))
    assert source == ModelSource(name="ViT-B-32", pretrained="laion2b_s34b_b79k")
    source = begun_from(read("Global.pretrained_model=openai", "Arch.name=ViT-B-16"))
    assert source.name == "ViT-B-16-quickgelu"


def test_a_weights_file_is_opened_with_the_model_that_arch_names(tmp_path):
    file = tmp_path / "weights.pt"
    file.touch()
    source = begun_from(read(f"Global.pretrained_model={file}"))
    assert source == ModelSource(name="ViT-B-32", pretrained=str(file))


def test_a_model_folder_must_be_what_arch_names(model, architecture, tmp_path):
    given = f"Global.pretrained_model={model}"
    source = begun_from(read(given, f"Arch.name={architecture}", *sized(32)))
    assert source == ModelSource(name=str(model))
    with pytest.raises(ConfigError, match=r"vision_cfg\.width 8, but 768 by Arch\.name"):
        begun_from(read(given, *sized(32)))
    larger = json.loads(architecture.read_text())
    larger["vision_cfg"]["image_size"] = 64
    (tmp_path / "larger.json").write_text(json.dumps(larger))
    assert begun_from(read(given, f"Arch.name={tmp_path}/larger.json", *sized(32))) == source


def test_what_is_used_is_what_was_trained(model, architecture, tmp_path, caplog):
    overrides = (f"Arch.name={architecture}", *sized(32), f"Global.output_dir={model.parent}")
    with caplog.at_level(logging.WARNING, "clipray.paddle"):
        source, wanted = finished(read(*overrides))
    assert source == ModelSource(name=f"{model.parent}/model")
    assert wanted.resize_mode == "squash"
    assert "made ready in another way" in caplog.text
    assert "'resize_mode': 'squash', 'size': 224" in caplog.text
    with pytest.raises(ConfigError, match="train first"):
        finished(read(f"Global.output_dir={tmp_path}"))
