"""Model folders: vanilla open_clip opens them, and nothing in a weights file ever runs."""

import io
import json
import os
import pickle
import shutil
import zipfile

import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clipray import clip
from clipray.errors import InputError, ModelError
from clipray.manifest import MAX_MANIFEST_BYTES, ModelFolder, ModelManifest, ModelSource, read_json
from clipray.preprocess import PreprocessConfig
from tests.drawing import drawings
from tests.training import towers

TEXTS = ["a small red circle", "", "two  words & 🦜", "x " * 50]


def source(path):
    return ModelSource(name=str(path))


@pytest.fixture
def copy(model, tmp_path):
    """A model folder to damage."""
    return shutil.copytree(model, tmp_path / "copy")


class Evil:
    def __init__(self, canary):
        self.canary = str(canary)

    def __reduce__(self):
        return os.mkdir, (self.canary,)


def test_vanilla_open_clip_gives_the_same_embeddings(model, encoder):
    module, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{model}")
    pictures = [drawing.png for drawing in drawings(6)]
    with torch.inference_mode():
        batch = torch.stack([preprocess(Image.open(io.BytesIO(data))) for data in pictures])
        images = module.eval().encode_image(batch, normalize=True).numpy()
        texts = module.encode_text(tokenize(TEXTS), normalize=True).numpy()
    ours = encoder.encode_images([encoder.pixels(data) for data in pictures])
    assert abs(ours - images).max() < 1e-5
    assert abs(encoder.encode_texts(TEXTS) - texts).max() < 1e-5


def test_a_folder_opens_as_what_was_saved(model, tmp_path):
    first = clip.load(source(model))
    (tmp_path / "again").mkdir()
    identity = clip.save(first, tmp_path / "again", {"loss": 0.5})
    second = clip.load(source(tmp_path / "again"))
    assert first.dim == second.dim == 32
    assert identity.fingerprint == first.identity().fingerprint == second.identity().fingerprint
    manifest = read_json(ModelManifest, ModelFolder(tmp_path / "again").manifest)
    assert (manifest.identity, manifest.metrics) == (identity, {"loss": 0.5})
    assert not second.module.training


def test_identity_follows_weights_preprocessing_and_tokenizer(model, copy):
    before = clip.load(source(model)).identity()
    assert clip.load(source(copy)).identity().fingerprint == before.fingerprint
    files = ModelFolder(copy)
    config = json.loads(files.config.read_text())
    config["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    files.config.write_text(json.dumps(config))
    changed = clip.load(source(copy)).identity()
    assert changed.weights == before.weights
    assert changed.preprocess != before.preprocess
    weights = load_file(files.weights)
    weights["text_projection"][0, 0] += 1e-3
    save_file(weights, files.weights)
    assert clip.load(source(copy)).identity().weights != before.weights


def test_new_weights_follow_the_seed(architecture):
    made = [clip.create(source(architecture), seed).identity() for seed in (1, 1, 2)]
    assert made[0] == made[1]
    assert made[0].weights != made[2].weights


def test_an_architecture_that_is_none_is_told(tmp_path):
    path = tmp_path / "a.json"
    for content, told in [
        ("{", "cannot be read as JSON"),
        ("[" * 100_000, "cannot be read as JSON"),
        (" " * (MAX_MANIFEST_BYTES + 1), "larger than"),
        ("[]", "expected a JSON object"),
        ("{}", "expected open_clip's model_cfg"),
    ]:
        path.write_text(content)
        with pytest.raises(InputError, match=told):
            clip.create(source(path), 0)
    path.write_text('{"embed_dim": 8, "vision_cfg": {"layers": "no"}, "text_cfg": {}}')
    with pytest.raises(ModelError, match="cannot be loaded"):
        clip.create(source(path), 0)


def test_weights_that_cannot_be_fetched_say_what_to_do(monkeypatch):
    def fail(*_args, **_options):
        raise FileNotFoundError("Failed to download file (a.bin). Last error: no connection")

    monkeypatch.setattr("open_clip.factory.download_pretrained", fail)
    with pytest.raises(ModelError, match=r"cannot be fetched .*; fetch them elsewhere"):
        clip.load(ModelSource(name="ViT-B-32", pretrained="laion2b_s34b_b79k"))


def test_an_unknown_name_is_told_with_what_is_near():
    with pytest.raises(ModelError, match="did you mean ViT-B-32"):
        clip.load(source("ViT-B-23"))
    with pytest.raises(ModelError, match="neither an open_clip model name nor a model folder"):
        clip.load(source("no/such/folder"))


@pytest.mark.parametrize("name", ["ViT-B-32", "ViT-B/32"])
def test_a_name_without_weights_is_told_with_its_tags(name):
    with pytest.raises(ModelError, match=f"'{name}' has no weights: .*laion"):
        clip.load(source(name))


@pytest.mark.parametrize(
    "damage",
    [
        lambda files: files.weights.unlink(),
        lambda files: files.weights.write_bytes(files.weights.read_bytes()[:-100]),
        lambda files: files.weights.write_bytes(b""),
        lambda files: save_file({"logit_scale": torch.ones(())}, files.weights),
        lambda files: files.config.write_text("{"),
        lambda files: files.config.write_text("{}"),
    ],
)
def test_a_folder_without_usable_weights_is_refused(copy, damage):
    damage(ModelFolder(copy))
    with pytest.raises(ModelError, match="copy: cannot be loaded"):
        clip.load(source(copy))


def test_preprocessing_is_part_of_the_model_that_is_saved(architecture, tmp_path):
    wanted = PreprocessConfig(size=(48, 48), std=(0.5, 0.5, 0.5), resize_mode="squash")
    made = clip.create(source(architecture), 0, wanted)
    assert made.preprocess["std"] == [0.5, 0.5, 0.5]
    assert made.preprocess["mean"] == clip.create(source(architecture), 0).preprocess["mean"]
    clip.save(made, tmp_path, {})
    module, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path}")
    assert transform(Image.new("RGB", (90, 30))).shape == (3, 48, 48)
    assert module.visual.preprocess_cfg["resize_mode"] == "squash"
    again = clip.load(source(tmp_path))
    assert again.identity() == made.identity().model_copy(update={"name": tmp_path.name})
    assert clip.load(source(tmp_path), wanted).identity() == again.identity()
    assert clip.architecture_of(str(tmp_path)) == made.architecture


def test_trained_positions_are_stretched_to_another_size(tmp_path):
    config = {"embed_dim": 32, "vision_cfg": towers.VIT, "text_cfg": towers.TEXT}
    (tmp_path / "vit.json").write_text(json.dumps(config))
    (tmp_path / "vit").mkdir()
    first = clip.create(source(tmp_path / "vit.json"), 0)
    clip.save(first, tmp_path / "vit", {})
    larger = clip.load(source(tmp_path / "vit"), PreprocessConfig(size=(32, 64)))
    assert larger.preprocess["size"] == [32, 64]
    assert larger.architecture["vision_cfg"]["image_size"] == (32, 64)
    before, after = (made.module.visual.positional_embedding for made in (first, larger))
    assert after.shape[0] == 1 + 4 * 8
    assert torch.equal(after[0], before[0])
    torch.testing.assert_close(after[1:].mean(0), before[1:].mean(0), atol=0.05, rtol=0)


def test_a_resnet_keeps_the_size_of_its_weights(model):
    with pytest.raises(ModelError, match="size mismatch"):
        clip.load(source(model), PreprocessConfig(size=64))


@pytest.mark.parametrize("name", ["ViT-B/32", "ViT-B-32"])
def test_an_architecture_is_known_without_its_weights(name):
    assert clip.architecture_of(name)["vision_cfg"]["patch_size"] == 32
    with pytest.raises(ModelError, match="neither an open_clip model name"):
        clip.architecture_of("ViT-B-33")


def evil_files(canary):
    """A plain pickle, and one in the zip that torch.save writes."""
    plain = pickle.dumps(Evil(canary), protocol=2)
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.writestr("archive/data.pkl", plain)
        file.writestr("archive/version", "3\n")
        file.writestr("archive/byteorder", "little")
    return [plain, zipped.getvalue()]


@pytest.mark.parametrize(("name", "tag"), [("ViT-B-32", "openai"), ("ViT-L/14", "metaclip_400m")])
def test_weights_trained_with_quickgelu_are_not_run_without(name, tag):
    with pytest.raises(ModelError, match=rf"give --model {name.replace('/', '-')}-quickgelu$"):
        clip.create(ModelSource(name=name, pretrained=tag), 0)


@pytest.mark.parametrize("form", [0, 1])
def test_code_in_a_weights_file_never_runs(copy, tmp_path, form):
    canary = tmp_path / "canary"
    evil = evil_files(canary)[form]
    (tmp_path / "evil.pt").write_bytes(evil)
    with pytest.raises(ModelError, match=r"evil\.pt: .*could run code"):
        clip.load(ModelSource(name="ViT-S-32", pretrained=str(tmp_path / "evil.pt")))
    files = ModelFolder(copy)
    files.weights.unlink()
    (copy / "open_clip_pytorch_model.bin").write_bytes(evil)
    with pytest.raises(ModelError, match="could run code"):
        clip.load(source(copy))
    assert not canary.exists()
    pickle.loads(evil_files(canary)[0])  # the canary does sing where it is let
    assert canary.exists()


def test_code_of_a_tokenizer_never_runs(copy, model):
    files, identity = ModelFolder(copy), clip.load(source(model)).identity()
    config = json.loads(files.config.read_text())
    config["model_cfg"]["text_cfg"] |= {
        "hf_tokenizer_name": "any",
        "tokenizer_kwargs": {"trust_remote_code": True},
    }
    files.config.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"copy: .*run code"):
        clip.load(source(copy))
    with pytest.raises(ModelError, match=r"copy: .*run code"):
        clip.open_tokenizer(copy, identity)
