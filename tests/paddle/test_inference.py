"""Every key of inference_clip.yaml: what it changes, or the warning that it changes nothing."""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import pytest
import torch

from clipray import clip
from clipray.config import load_config
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError, InputError, MismatchError, ModelError
from clipray.exported import ExportedFolder
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.onnx_encoder import OnnxEncoder
from clipray.paddle import predict as command
from clipray.paddle.inference import MEANINGLESS, PredictConfig
from clipray.paddle.notes import Notes
from tests.paddle.galleries import FILE, predict
from tests.paddle.leaves import leaves

OPS = "PreProcess.transform_ops"
NORMALIZE = f"{OPS}.2.NormalizeImage"
SHOWN = {}


def shows(*keys):
    """Enter what shows that a key has a meaning."""

    def enter(check):
        SHOWN.update(dict.fromkeys(keys, check))
        return check

    return enter


@dataclass
class World:
    """What a check can use."""

    settings: dict[str, Any]
    pictures: Path
    tmp: Path
    monkeypatch: Any
    capsys: Any
    caplog: Any

    def do(self, mode, **changes):
        return predict(self.settings, mode, **changes)

    def ask(self, mode, **changes):
        return [list(answer.found) for answer in self.do(mode, **changes).answers]

    def build(self, mode="image_index_build", **changes):
        """An index of its own."""
        folder = {f"IndexProcess.{mode.partition('_')[0]}_index_dir": self.tmp / "i"}
        report = predict(self.settings | folder, mode, **changes)
        return report, Index.open(self.tmp / "i")

    def options(self, **changes):
        """How a query opens its encoder."""
        seen = []
        opened = command.open_tower

        def opening(place, modality, options, *rest):
            seen.append(options)
            return opened(place, modality, EncoderOptions(device="cpu"), *rest)

        with self.monkeypatch.context() as patch:
            patch.setattr(command, "open_tower", opening)
            self.do("text-to-image", **changes)
        return seen[0]

    def refuses(self, kind, match, mode="text-to-image", **changes):
        with pytest.raises(kind, match=match):
            self.do(mode, **changes)


@pytest.fixture
def world(built, pictures, tmp_path, monkeypatch, capsys, caplog):
    return World(built, pictures, tmp_path, monkeypatch, capsys, caplog)


@pytest.mark.parametrize("key", leaves(FILE))
def test_every_key_changes_something_or_is_told_to_change_nothing(world, key):
    SHOWN[key](world, key)


def _tell_meaningless(world, key):
    config = load_config(PredictConfig, FILE)
    notes = Notes()
    config.tell_meaningless(notes)
    config.tell_meaningless(notes)
    why = MEANINGLESS[key.partition(".")[2]]
    assert world.caplog.text.count(f"{key}: has no meaning here, {why}") == 1


shows(*(f"Global.{name}" for name in MEANINGLESS))(_tell_meaningless)


def test_only_keys_that_are_there_are_told(caplog):
    tree = load_config(PredictConfig, None, ["Global.mode=text-to-image"])
    tree.tell_meaningless(Notes())
    assert not caplog.text


@shows("Global.infer_imgs")
def images_are_read_from_there(world, key):
    picture = world.pictures / "all/04.png"
    assert world.ask("image-to-image", **{key: picture}) == [[str(picture)]]


@shows("Global.texts")
def texts_are_read_from_there(world, key):
    assert len(world.ask("text-to-image", **{key: world.pictures / "one.txt"})) == 1


@shows("Global.inference_image_encoder_dir", "Global.inference_text_encoder_dir")
def the_tower_is_that_one_and_the_other_is_not_touched(world, key):
    mine, other = ("image-to-image", "text-to-image")
    mine, other = (mine, other) if "image" in key else (other, mine)
    changes = {key: world.tmp / "nowhere"}
    world.refuses(ModelError, f"{key}: model '.*nowhere'", mine, **changes)
    assert world.ask(other, **changes)


@shows("Global.batch_size", "IndexProcess.batch_size")
def so_many_go_through_the_encoder_at_once(world, key):
    seen = []
    encode = OnnxEncoder.encode_images
    world.monkeypatch.setattr(
        OnnxEncoder,
        "encode_images",
        lambda s, pixels: seen.append(len(pixels)) or encode(s, pixels),
    )
    other = {"Global.batch_size", "IndexProcess.batch_size"} - {key}
    changes = {key: 8, other.pop(): 3}
    if key.startswith("Global"):
        assert len(world.ask("image-to-image", **changes)) == 20
    else:
        world.build(**changes)
    assert seen == [8, 8, 4]


@shows("Global.mode")
def only_the_five_modes_are_known(world, key):
    world.refuses(ConfigError, "Input should be 'image_index_build', 'text_index_build'", "images")
    del key


@shows("Global.use_gpu")
def the_gpu_is_used(world, key):
    assert world.options() == EncoderOptions(device="cpu", precision="fp32")
    assert world.options(**{key: True}) == EncoderOptions(device="cuda", precision="fp32")


@shows("Global.use_fp16")
def half_precision_is_for_gpus(world, key):
    assert world.options(**{key: True, "Global.use_gpu": True}).precision == "fp16"
    assert not world.caplog.text.count(key)
    assert world.options(**{key: True}).precision == "fp32"
    assert f"{key}: has no meaning here, a CPU computes in fp32" in world.caplog.text
    assert world.options(**{key: None}).precision == "auto"


@shows("Global.embedding_size", "IndexProcess.embedding_size")
def the_vectors_have_that_length(world, key):
    world.refuses(MismatchError, f"{key}: found 512, but the vectors of .* have 32", **{key: 512})
    world.refuses(MismatchError, f"{key}: found 512", "image_index_build", **{key: 512})


@shows("Global.cpu_num_threads")
def so_many_threads_compute(world, key):
    seen = []
    answer = command._answer
    world.monkeypatch.setattr(
        command,
        "_answer",
        lambda *given: (
            seen.append((torch.get_num_threads(), faiss.omp_get_max_threads())) or answer(*given)
        ),
    )
    before = torch.get_num_threads(), faiss.omp_get_max_threads()
    world.do("text-to-image", **{key: 3})
    assert seen == [(3, 3)]
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == before


@shows("Global.enable_benchmark")
def timings_are_told(world, key):
    world.do("text-to-image", **{key: False})
    assert "benchmark" not in world.capsys.readouterr().err
    for mode in ("image-to-image", "image_index_build"):
        changes = {key: True, "IndexProcess.image_index_dir": world.tmp / "i"}
        world.do(mode, **(changes if mode.endswith("build") else {key: True}))
        told = world.capsys.readouterr()
        assert told.out == ""
        assert f"benchmark, {mode} on cpu: load " in told.err
        last = "index" if mode.endswith("build") else "search"
        for stage in ("preprocess", "encode", last, "total"):
            assert re.search(rf"{stage} \d+\.\d{{4}} s", told.err)


@shows(f"{OPS}.0.ResizeImage.size", f"{OPS}.1.CropImage.size")
def pictures_get_that_size(world, key):
    match = "CropImage.size: found .* behind ResizeImage to"
    world.refuses(ConfigError, match, "image_index_build", **{key: 48})
    both = {f"{OPS}.0.ResizeImage.size": 48, f"{OPS}.1.CropImage.size": 48}
    world.refuses(MismatchError, r"says size \[48, 48\], not", "image_index_build", **both)


@shows(f"{NORMALIZE}.mean", f"{NORMALIZE}.std")
def pictures_are_normalised_like_that(world, key):
    name = key.rpartition(".")[2]
    match = rf"says {name} \[0.5, 0.5, 0.5\], not"
    world.refuses(MismatchError, match, "image_index_build", **{key: [0.5, 0.5, 0.5]})


@shows(f"{NORMALIZE}.scale")
def pixels_are_scaled_like_that(world, key):
    world.refuses(MismatchError, "says mean .*, not", "image_index_build", **{key: "1.0/127.0"})


@shows(f"{NORMALIZE}.order")
def channels_are_where_the_order_says(world, key):
    match = "order: found 'chw' before ToCHWImage, expected '' or 'hwc'"
    world.refuses(ConfigError, match, **{key: "chw"})


@shows(f"{NORMALIZE}.channel_num")
def there_are_three_channels(world, key):
    world.refuses(ConfigError, "channel_num: Input should be 3 .found 4", **{key: 4})


@shows(f"{OPS}.3.ToCHWImage")
def channels_come_first(world, key):
    ops = load_config(PredictConfig, FILE).model_dump(mode="json", exclude_unset=True)
    less = ops["PreProcess"]["transform_ops"][:3]
    changes = {name: value for name, value in world.settings.items() if OPS not in name}
    with pytest.raises(ConfigError, match="found ResizeImage, CropImage, NormalizeImage; expected"):
        predict(changes, "text-to-image", **{OPS: less})
    del key


@shows("IndexProcess.index_method")
def the_index_is_made_like_that(world, key):
    for method in ("IVF", "HNSW16", "Flat"):
        assert world.build(**{key: method})[1].manifest.method == method
    world.refuses(ConfigError, "method 'HSNW': Faiss cannot", "image_index_build",
                  **{key: "HSNW", "IndexProcess.image_index_dir": world.tmp / "j"})  # fmt: skip


@shows("IndexProcess.image_index_dir", "IndexProcess.text_index_dir")
def the_index_is_that_one(world, key):
    mode = "image-to-image" if "image" in key else "image-to-text"
    assert world.ask(mode)
    world.refuses(InputError, "nowhere", mode, **{key: world.tmp / "nowhere"})


@shows("IndexProcess.index_operation")
def rows_come_and_go(world, key):
    totals = []
    for operation, images in (("new", "all"), ("remove", "all/00.png"), ("append", "all/00.png")):
        changes = {key: operation, "Global.infer_imgs": world.pictures / images}
        totals.append(len(world.build(**changes)[1]))
    assert totals == [20, 19, 20]


@shows("IndexProcess.delimiter")
def labels_stand_behind_it(world, key):
    listed = world.tmp / "list.txt"
    listed.write_text(f"{world.pictures}/all/00.png|a ring")
    _, index = world.build(**{key: "|", "Global.infer_imgs": listed})
    assert set(index.column("label").values()) == {"a ring"}


@shows("IndexProcess.dist_type")
def only_inner_products_are_known(world, key):
    world.refuses(ConfigError, "dist_type: expected IP; vectors have length 1", **{key: "L2"})


@shows("IndexProcess.return_k")
def so_many_results_come(world, key):
    assert {len(found) for found in world.ask("text-to-image", **{key: 6})} == {6}


@shows("IndexProcess.score_thres")
def results_are_that_good(world, key):
    assert world.ask("image-to-image", **{key: 1.1}) == [[]] * 20
    found = world.ask("image-to-image", **{key: 0.99, "IndexProcess.return_k": 20})
    assert all(1 <= len(each) < 20 for each in found)


def test_both_towers_must_be_of_one_model(world, architecture):
    stranger = world.tmp / "stranger"
    stranger.mkdir()
    clip.save(clip.create(ModelSource(name=str(architecture)), seed=5), stranger, {})
    match = "the encoder, prepared as told, is stranger"
    world.refuses(MismatchError, match, **{"Global.inference_text_encoder_dir": stranger})
    changes = {"Global.inference_image_encoder_dir": stranger}
    changes["IndexProcess.index_operation"] = "append"
    world.refuses(MismatchError, "the encoder is stranger", "image_index_build", **changes)


def test_another_way_to_the_size_is_obeyed_told_and_not_mixed_with_the_models_own(world, model):
    """The plain model crops where the file squashes."""
    mine = {f"Global.inference_{name}_encoder_dir": model for name in ("image", "text")}
    _, index = world.build(**mine)
    assert "says resize_mode squash, not shortest, as" in world.caplog.text
    mine |= {"IndexProcess.image_index_dir": world.tmp / "i"}
    assert world.ask("text-to-image", **mine) == world.ask("text-to-image")
    bare = {name: value for name, value in world.settings.items() if OPS not in name} | mine
    with pytest.raises(MismatchError, match="prepared as told, is"):
        predict(bare, "text-to-image", **{OPS: []})
    own = ExportedFolder(world.settings["Global.inference_image_encoder_dir"]).read()["image"]
    assert index.manifest.model.preprocess == own.identity.preprocess


def test_an_index_names_the_model_that_has_both_towers(world, squashing, towers):
    assert world.build()[1].manifest.source.name == str(squashing)
    alone = shutil.copytree(towers / "image", world.tmp / "alone")
    moved = squashing.rename(squashing.with_name("moved"))
    try:
        changes = {"Global.inference_image_encoder_dir": alone}
        assert world.build(**changes)[1].manifest.source.name == str(alone)
    finally:
        moved.rename(squashing)
    shutil.copytree(towers / "text/text", alone / "text")  # not alone any more
    changes = {"Global.inference_image_encoder_dir": alone}
    assert world.build(**changes)[1].manifest.source.name == str(alone)


@pytest.mark.parametrize("name", ["inference.pdmodel", "inference.pdiparams", "w.pdparams"])
def test_models_of_paddle_are_refused_with_what_to_use(world, name):
    (world.tmp / "paddle").mkdir()
    (world.tmp / "paddle" / name).write_bytes(b"")
    for place in (world.tmp / "paddle", world.tmp / "paddle" / name):
        changes = {"Global.inference_text_encoder_dir": place}
        world.refuses(ConfigError, "PaddlePaddle, .*clipray paddle export", **changes)
