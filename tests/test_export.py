"""Exported towers give the model's vectors, or are not written."""

import json
import logging
import os
import shutil
import time

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch.nn.functional import normalize

from clipray import clip, export, onnx_graph
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import DamagedError, InputError, ModelError, OutputError
from clipray.export import ExportConfig
from clipray.exported import ExportedFolder
from clipray.manifest import ModelSource
from clipray.pixels import Normaliser
from clipray.probe import drawn_pictures, made_texts

VISION = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 2}
TEXT = {"context_length": 10, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
WHOLE = TEXT | {"no_causal_mask": True, "pool_type": "last"}


def run(model, output, **options):
    return export.export(ExportConfig(model=str(model), output=output, samples=4, **options))


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model folder: a vision transformer, and a text tower that sees its padding."""
    root = tmp_path_factory.mktemp("other")
    architecture = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": WHOLE}
    (root / "a.json").write_text(json.dumps(architecture))
    (root / "model").mkdir()
    clip.save(clip.create(ModelSource(name=str(root / "a.json")), seed=1), root / "model", {})
    return root / "model"


def test_every_variant_is_measured_and_recorded(exported, model):
    for name, manifest in ExportedFolder(exported).read().items():
        folder = exported / name
        assert set(manifest.variants) == {"fp32", "fp16"} | ({"int8"} if name == "image" else set())
        for precision, variant in manifest.variants.items():
            assert export.LEAST_COSINE[precision] <= variant.cosine_min <= variant.cosine_mean
            assert list(variant.files) == [f"model_{precision}.onnx"]
        assert manifest.source == ModelSource(name=str(model))
        written = {file for variant in manifest.variants.values() for file in variant.files}
        beside = {path.name for path in folder.iterdir()} - written
        assert beside == {"tower.json", "open_clip_config.json"}
        assert manifest.samples.startswith("20 ")
    sizes = {path.name: path.stat().st_size for path in (exported / "text").glob("*.onnx")}
    assert sizes["model_fp16.onnx"] < 0.6 * sizes["model_fp32.onnx"]


def test_nothing_in_the_files_tells_where_they_were_made(exported):
    for path in exported.rglob("*.*"):
        data = path.read_bytes()
        assert b"site-packages" not in data
        assert os.fsencode(onnx_graph.__file__) not in data


def test_towers_of_another_make_and_given_pictures(other, photos, tmp_path):
    report = run(other, tmp_path / "out", images=photos)
    assert report.towers["image"].samples == "4 pictures given"
    assert report.towers["text"].ending is None
    assert "image: fp32" in report.summary()
    source = ModelSource(name=str(other))
    torch_way, onnx_way = (
        open_encoder(at, EncoderOptions())
        for at in (source, ModelSource(name=str(tmp_path / "out")))
    )
    texts = made_texts(5)
    pixels = drawn_pictures(5, onnx_way.pixels)
    for one, two in (
        (torch_way.encode_texts(texts), onnx_way.encode_texts(texts)),
        (torch_way.encode_images(pixels), onnx_way.encode_images(pixels)),
    ):
        assert (one * two).sum(axis=1).min() > 0.99999


def test_weights_too_many_for_one_file_lie_beside_it(other, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "MAX_FILE_BYTES", 1000)
    out = tmp_path / "out"
    report = run(other, out, towers="image", precision=("int8", "fp32"))
    for precision, variant in report.towers["image"].variants.items():
        name = f"model_{precision}.onnx"
        assert list(variant.files) == [name, f"{name}.data"]
    encoder = open_encoder(ModelSource(name=str(out)), EncoderOptions(precision="int8"))
    assert encoder.encode_images(drawn_pictures(1, encoder.pixels)).shape == (1, 16)
    weights = out / "image" / "model_fp32.onnx.data"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(DamagedError, match=r"model_fp32\.onnx\.data: has"):
        open_encoder(ModelSource(name=str(out)), EncoderOptions())


def test_a_variant_that_strays_is_refused_with_its_figure(other, tmp_path, monkeypatch):
    monkeypatch.setitem(export.LEAST_COSINE, "fp32", 1.1)
    with pytest.raises(ModelError, match=r"image tower as fp32: cosine 1\.0000.* 1\.1 is wanted"):
        run(other, tmp_path / "out", towers="image")
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_gives_no_numbers_is_refused(other, tmp_path, monkeypatch):
    monkeypatch.setattr(
        export.OnnxTower, "__call__", lambda _, batch: np.full((len(batch), 16), np.nan)
    )
    with pytest.raises(ModelError, match="cosine nan"):
        run(other, tmp_path / "out", towers="text")


def test_what_the_exporter_cannot_write_is_told(other, tmp_path, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no such\noperator")

    monkeypatch.setattr(torch.onnx, "export", fail)
    with pytest.raises(
        ModelError, match="image tower cannot be exported as fp32: no such operator"
    ):
        run(other, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_wrong_uses_are_told(model, tmp_path, exported):
    before = sorted(exported.rglob("*"))
    with pytest.raises(OutputError, match="exists already"):
        run(model, exported)
    assert sorted(exported.rglob("*")) == before
    with pytest.raises(ValidationError, match=r"int8 is for image towers: .*0\.998"):
        run(model, tmp_path / "out", towers="text", precision=("int8",))
    with pytest.raises(InputError, match="no such folder"):
        run(model, tmp_path / "out", images=tmp_path / "none")
    with pytest.raises(InputError, match="no picture that can be read"):
        run(model, tmp_path / "out", images=model)
    with pytest.raises(ModelError, match="an exported folder, which has no weights for torch"):
        run(exported, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.soak
def test_a_vision_transformer_in_8_bits_is_near_and_fast(tmp_path):
    logging.getLogger().setLevel(logging.ERROR)
    made = clip.create(ModelSource(name="ViT-B-32"), seed=0)
    (tmp_path / "model").mkdir()
    clip.save(made, tmp_path / "model", {})
    out = tmp_path / "out"
    export.export(
        ExportConfig(
            model=str(tmp_path / "model"), output=out, precision=("fp32", "int8"), towers="image"
        )
    )
    torch.set_num_threads(1)
    small = open_encoder(ModelSource(name=str(out)), EncoderOptions(precision="int8"))
    pixels = drawn_pictures(16, small.pixels)
    normalise = Normaliser(made.preprocess, torch.device("cpu"))

    @torch.inference_mode()
    def plain(pixels):
        batch = normalise(torch.from_numpy(np.stack(pixels)))
        return normalize(made.module.encode_image(batch), dim=-1).numpy()

    assert (plain(pixels) * small.encode_images(pixels)).sum(axis=1).min() > 0.999
    ratios = [
        cpu_seconds(plain, pixels) / cpu_seconds(small.encode_images, pixels) for _ in range(7)
    ]
    assert np.median(ratios) > 2.2
    shutil.rmtree(out)


def cpu_seconds(work, given):
    began = time.process_time()
    work(given)
    return time.process_time() - began
