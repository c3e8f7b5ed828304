"""ONNX Runtime gives torch's vectors, from files that are what they were."""

import json
import pickle
import shutil

import numpy as np
import onnxruntime
import pytest

from clipray import clip, storage
from clipray.embed import EmbedConfig, embed
from clipray.embeddings import EmbeddingsFolder
from clipray.encoder import identify, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import DamagedError, MismatchError, ModelError
from clipray.manifest import ModelSource
from clipray.onnx_encoder import OnnxEncoder
from clipray.search import SearchConfig, search
from clipray.torch_encoder import TorchEncoder
from tests.drawing import drawings
from tests.test_clip import Evil

TEXTS = ["a ring", "", "a large green triangle beside a very small blue circle", "x " * 100, "🦜"]


def opened(folder, **options):
    return open_encoder(ModelSource(name=str(folder)), EncoderOptions(device="cpu", **options))


def cosines(one, two):
    assert one.dtype == two.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(one, axis=1), 1, atol=1e-5)
    return (one * two).sum(axis=1)


@pytest.fixture
def copy(exported, tmp_path):
    """An exported folder to damage."""
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.mark.parametrize(
    ("precision", "least"), [("auto", 0.99999), ("fp16", 0.999), ("int8", 0.999)]
)
def test_vectors_are_those_of_torch(exported, encoder, precision, least):
    ours = opened(exported, precision=precision)
    pixels = [encoder.pixels(drawing.png) for drawing in drawings(64)]
    for count in (1, 3, 64):
        found = ours.encode_images(pixels[:count])
        assert cosines(found, encoder.encode_images(pixels[:count])).min() > least
    for texts in ([TEXTS[0]], TEXTS[1:2], TEXTS, TEXTS * 10):
        assert cosines(ours.encode_texts(texts), encoder.encode_texts(texts)).min() > least


def test_the_back_end_follows_the_folder(exported, model, encoder, tmp_path):
    assert isinstance(opened(exported), OnnxEncoder)
    assert isinstance(opened(model), TorchEncoder)
    source = ModelSource(name=str(exported))
    assert identify(source, EncoderOptions()) == encoder.identity
    assert opened(exported).identity == encoder.identity
    with pytest.raises(ModelError, match="an exported folder, which has no weights for torch"):
        opened(exported, backend="torch")
    with pytest.raises(ModelError, match="one tower of an exported folder; give"):
        opened(exported / "image")
    with pytest.raises(ModelError, match=r"no exported folder, .* `clipray export --model"):
        opened(model, backend="onnx")
    with pytest.raises(ModelError, match="precision int8: only exported models have it"):
        opened(model, precision="int8")


def test_a_model_folder_may_hold_its_export(exported, model, architecture, encoder, tmp_path):
    both = shutil.copytree(model, tmp_path / "both")
    shutil.copytree(exported, both / "exported")
    assert isinstance(opened(both), TorchEncoder)
    found = opened(both, backend="onnx")
    assert isinstance(found, OnnxEncoder)
    assert found.identity == encoder.identity
    shutil.rmtree(tmp_path / "both")
    both.mkdir()
    clip.save(clip.create(ModelSource(name=str(architecture)), seed=5), both, {})
    shutil.copytree(exported, both / "exported")
    with pytest.raises(MismatchError, match=r"exported: its image tower is .* written with"):
        opened(both, backend="onnx")


def test_one_tower_alone_refuses_the_other_side(copy):
    shutil.rmtree(copy / "text")
    images = opened(copy)
    pixels = [images.pixels(drawings(1)[0].png)]
    assert images.encode_images(pixels).shape == (1, 32)
    with pytest.raises(ModelError, match="has no text tower; export the model with --towers both"):
        images.encode_texts(["a"])


def test_a_job_that_needs_a_missing_tower_writes_nothing(copy, photos, tmp_path):
    shutil.rmtree(copy / "text")
    config = EmbedConfig(
        input=(str(photos),),
        output=tmp_path / "out",
        model=str(copy),
        modality="both",
        workers=0,
    )
    with pytest.raises(ModelError, match="has no text tower"):
        embed(config)
    assert not config.output.exists()
    assert embed(config.model_copy(update={"modality": "image"})).rows == len(drawings())


def test_a_precision_that_is_not_there_is_told(copy):
    path = copy / "image" / "tower.json"
    tree = json.loads(path.read_text())
    del tree["variants"]["int8"]
    path.write_text(json.dumps(tree))
    for precision in ("int8", "bf16"):
        with pytest.raises(ModelError, match=f"image: exported as fp16, fp32, not as {precision}"):
            opened(copy, precision=precision)
        with pytest.raises(ModelError, match="exported as"):
            identify(ModelSource(name=str(copy)), EncoderOptions(precision=precision))


@pytest.mark.skipif(
    "CUDAExecutionProvider" in onnxruntime.get_available_providers(), reason="there is a GPU"
)
def test_a_device_that_is_not_there_is_told(exported):
    for device in ("cuda", "mps"):
        with pytest.raises(ModelError, match=f"device '{device}': this ONNX Runtime has no"):
            open_encoder(ModelSource(name=str(exported)), EncoderOptions(device=device))


@pytest.mark.parametrize("tower", ["image", "text"])
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_one_changed_byte_is_noticed(copy, tower, place):
    path = copy / tower / "model_fp32.onnx"
    data = bytearray(path.read_bytes())
    data[place * (len(data) - 1) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=rf"{tower}/model_fp32\.onnx: its sha256"):
        opened(copy)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda root: (root / "model_fp32.onnx").unlink(), "model_fp32.onnx: missing"),
        (lambda root: (root / "model_fp32.onnx").write_bytes(b"?"), "model_fp32.onnx: has 1 bytes"),
        (lambda root: (root / "tower.json").write_text("{"), "tower.json: cannot be read"),
        (lambda root: change(root, "preprocess", "std", [1, 1, 1]), "tower.json: its prepro"),
        (lambda root: change(root, "format", None, 2), "tower.json: format 2"),
    ],
)
def test_damage_is_told_with_the_file(copy, damage, told):
    damage(copy / "image")
    with pytest.raises(DamagedError, match=told):
        opened(copy)


def test_towers_and_tokenizers_of_two_models_are_not_mixed(copy):
    change(copy / "text", "identity", "weights", "0" * 64)
    with pytest.raises(MismatchError, match="export both from one model"):
        opened(copy)
    change(copy / "image", "identity", "weights", "0" * 64)
    opened(copy)
    config = copy / "text" / "open_clip_config.json"
    config.write_text(config.read_text().replace('"context_length": 12', '"context_length": 11'))
    with pytest.raises(ModelError, match="its tokenizer is not that of"):
        opened(copy)
    config.write_text("{")
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        opened(copy)


def test_a_pickle_in_place_of_a_graph_never_runs(copy, tmp_path):
    canary = tmp_path / "canary"
    path = copy / "image" / "model_fp32.onnx"
    path.write_bytes(pickle.dumps(Evil(canary), protocol=2))
    size, checksum = path.stat().st_size, storage.sha256_file(path)
    tree = json.loads((copy / "image" / "tower.json").read_text())
    tree["variants"]["fp32"]["files"][path.name] = {"bytes": size, "sha256": checksum}
    (copy / "image" / "tower.json").write_text(json.dumps(tree))
    with pytest.raises(DamagedError, match=r"model_fp32\.onnx: ONNX Runtime cannot open it"):
        opened(copy)
    assert not canary.exists()


def test_a_search_finds_the_same_rows(flat_index, exported):
    for text in ("a small red circle", "a large ring", "blue"):
        ways = [
            search(SearchConfig(index=flat_index, text=text, model=name, k=10)).matches
            for name in (None, str(exported))
        ]
        assert [row["id"] for row in ways[0]] == [row["id"] for row in ways[1]]


def test_a_collection_is_embedded_alike(exported, photos, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(exported.parent)
    folder = EmbeddingsFolder(tmp_path / "out")
    config = EmbedConfig(
        input=(str(photos),),
        output=folder.root,
        model=exported.name,
        modality="both",
        decode="fast",
        workers=0,
    )
    assert embed(config).rows == len(drawings())
    manifest = folder.read()
    assert manifest.model == encoder.identity
    assert manifest.source == ModelSource(name=str(exported))
    found = np.load(folder.vectors(0, "image")).astype(np.float32)
    pixels = [encoder.pixels(path.read_bytes()) for path in sorted(photos.rglob("*.png"))]
    assert (found @ encoder.encode_images(pixels).T).max(axis=1).min() > 0.998


def change(root, section, key, value):
    path = root / "tower.json"
    tree = json.loads(path.read_text())
    if key is None:
        tree[section] = value
    else:
        tree[section][key] = value
    path.write_text(json.dumps(tree))
