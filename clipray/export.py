"""A model to ONNX files, one folder a tower, each measured against the model it comes from.

A variant whose vectors stray is refused, and then nothing is written.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch.nn.functional import normalize

from clipray import clip, probe, storage
from clipray.clip import ClipModel
from clipray.config import Config
from clipray.ending import Ending
from clipray.errors import InputError, ModelError, OutputError
from clipray.exported import (
    MOST_PRECISE,
    ExportedFolder,
    ExportPrecision,
    TowerFolder,
    TowerManifest,
    Variant,
)
from clipray.manifest import (
    FileRecord,
    Modalities,
    Modality,
    ModelIdentity,
    ModelSource,
    modalities_of,
    write_json,
)
from clipray.onnx_encoder import OnnxTower
from clipray.onnx_graph import files_of, quantise, write_image_graph, write_text_graph
from clipray.outputs import OutputPath
from clipray.pixels import Normaliser, pixel_reader
from clipray.preprocess import PreprocessConfig
from clipray.report import Report
from clipray.texts import ending_of

LEAST_COSINE: dict[ExportPrecision, float] = {"fp32": 0.99999, "fp16": 0.999, "int8": 0.999}
BATCH = 16

Vectors = NDArray[np.float64]
ItemT = TypeVar("ItemT")


class ExportConfig(Config):
    """Write a model as ONNX files, which embed, search and serve run with ONNX Runtime."""

    model: str = Field(description="open_clip model name, or a model folder")
    pretrained: str | None = Field(None, description="open_clip tag, or a weights file")
    output: OutputPath = Field(description="new folder; MODEL/exported is found by --backend onnx")
    towers: Modalities = Field("both", description="which towers")
    precision: tuple[ExportPrecision, ...] = Field(
        ("fp32",), description="fp32, fp16 (for GPUs), int8 (images only); may be repeated"
    )
    images: Path | None = Field(
        None, description="folder of pictures to measure on; by default some are drawn"
    )
    samples: int = Field(64, ge=1, description="pictures and texts to measure on")
    preprocess: PreprocessConfig = PreprocessConfig()

    @model_validator(mode="after")
    def _no_text_in_8_bits(self) -> "ExportConfig":
        if self.towers == "text" and "int8" in self.precision:
            raise ValueError(
                "int8 is for image towers: a text tower loses too much by it (ViT-B-32: cosine "
                "0.998, where 0.999 is wanted); leave it out, texts run in fp32 beside int8 images"
            )
        return self


class ExportReport(Report):
    """What was written, and how near its vectors are to the model's."""

    output: Path
    towers: dict[Modality, TowerManifest]

    def summary(self) -> str:
        """One line a file."""
        lines = [
            f"{self.output}/{name}: {precision}, {_mib(variant)} MiB, cosine at least "
            f"{variant.cosine_min:.6f}, {variant.cosine_mean:.6f} on average over {made.samples}"
            for name, made in self.towers.items()
            for precision, variant in made.variants.items()
        ]
        return "\n".join(lines)


def export(config: ExportConfig) -> ExportReport:
    """Write and measure all towers and variants; the folder appears when all are good.

    Raises:
        ModelError: the model cannot be loaded or exported, or a variant strays too far.
        InputError: no pictures to measure on.
        OutputError: the output holds something.
    """
    if storage.occupied(config.output):
        raise OutputError(f"{config.output}: exists already; give --output a new folder")
    if config.images and not config.images.is_dir():
        raise InputError(f"{config.images}: no such folder; --images takes one of pictures")
    source = ModelSource(name=config.model, pretrained=config.pretrained).absolute()
    model = clip.load(source, config.preprocess)
    identity = model.identity()
    storage.make_folder(config.output.parent)
    with storage.staged_folder(config.output) as staged:
        folder = ExportedFolder(staged)
        made = {
            name: _export_tower(name, folder.tower(name), model, identity, config)
            for name in modalities_of(config.towers)
        }
    return ExportReport(output=config.output, towers=made)


@dataclass(frozen=True)
class _Side:
    """How one tower is written, and what it is to answer.

    Attributes:
        batches: inputs of the graph.
        expected: vectors of all batches, by the model that is exported.
    """

    tower: Modality
    model: ClipModel
    write: Callable[[ClipModel, Path, torch.dtype], None]
    batches: tuple[NDArray[np.generic], ...]
    expected: Vectors
    samples: str
    ending: Ending | None = None


def _export_tower(
    name: Modality,
    files: TowerFolder,
    model: ClipModel,
    identity: ModelIdentity,
    config: ExportConfig,
) -> TowerManifest:
    files.root.mkdir()
    clip.save_tokenizer(model, files.root)
    side = _image_side(model, config) if name == "image" else _text_side(model, config)
    manifest = TowerManifest(
        tower=name,
        identity=identity,
        source=model.source,
        preprocess=dict(model.preprocess),
        ending=side.ending,
        samples=side.samples,
        variants={p: _variant(side, files, p) for p in _precisions(name, config)},
    )
    write_json(files.manifest, manifest)
    return manifest


def _precisions(name: Modality, config: ExportConfig) -> tuple[ExportPrecision, ...]:
    asked = [p for p in MOST_PRECISE if p in config.precision]
    if name == "text":
        return tuple(p for p in asked if p != "int8") or ("fp32",)
    return tuple(asked)


@torch.inference_mode()
def _image_side(model: ClipModel, config: ExportConfig) -> _Side:
    read, whose = pixel_reader(model.preprocess), "drawn here"
    if config.images:
        pictures, whose = probe.read_pictures(config.images, config.samples, read), "given"
    else:
        pictures = probe.drawn_pictures(config.samples, read)
    normalise, module = Normaliser(model.preprocess, torch.device("cpu")), cast(Any, model.module)
    batches = tuple(np.stack(batch) for batch in _split(pictures))
    features = [module.encode_image(normalise(torch.from_numpy(batch))) for batch in batches]
    samples = f"{len(pictures)} pictures {whose}"
    return _Side("image", model, write_image_graph, batches, _unit(features), samples)


@torch.inference_mode()
def _text_side(model: ClipModel, config: ExportConfig) -> _Side:
    texts, ending = probe.made_texts(config.samples), ending_of(model.module)
    whole = [model.tokenize(batch) for batch in _split(texts)]
    features = [cast(Any, model.module).encode_text(tokens) for tokens in whole]
    batches = tuple((ending.cut(tokens) if ending else tokens).numpy() for tokens in whole)
    samples = f"{len(texts)} made texts"
    return _Side("text", model, write_text_graph, batches, _unit(features), samples, ending)


def _variant(side: _Side, files: TowerFolder, precision: ExportPrecision) -> Variant:
    path = files.model(precision)
    try:
        _write(side, path, precision)
    except Exception as error:  # the exporter raises whatever a model makes it raise
        told = " ".join(str(error).split())[:300]
        raise ModelError(
            f"model {side.model.source.name}: its {side.tower} tower cannot be exported as "
            f"{precision}: {told}"
        ) from error
    run = OnnxTower(path, precision)
    found = np.concatenate([run(batch) for batch in side.batches])
    cosines = np.einsum("nd,nd->n", found.astype(np.float64), side.expected)
    _require_near(side, precision, float(cosines.min()))
    return Variant(
        files={
            file.name: FileRecord.of((file.stat().st_size, storage.sha256_file(file)))
            for file in files_of(path)
        },
        cosine_min=float(cosines.min()),
        cosine_mean=float(cosines.mean()),
    )


def _write(side: _Side, path: Path, precision: ExportPrecision) -> None:
    if precision == "int8":
        _write_int8(side, path)
    else:
        dtype = torch.float16 if precision == "fp16" else torch.float32
        side.write(side.model, path, dtype)


def _write_int8(side: _Side, path: Path) -> None:
    whole = TowerFolder(path.parent).model("fp32")
    if whole.is_file():  # fp32 is written first, where it was asked for
        return quantise(whole, path)
    with tempfile.TemporaryDirectory() as scratch:
        side.write(side.model, Path(scratch) / whole.name, torch.float32)
        return quantise(Path(scratch) / whole.name, path)


def _require_near(side: _Side, precision: ExportPrecision, cosine: float) -> None:
    least = LEAST_COSINE[precision]
    if not cosine >= least:  # NaN is not
        raise ModelError(
            f"{side.tower} tower as {precision}: cosine {cosine:.6f} with the model over "
            f"{side.samples}, at least {least} is wanted; nothing was written, "
            f"leave out --precision {precision}"
        )


def _split(items: Sequence[ItemT]) -> list[Sequence[ItemT]]:
    return [items[start : start + BATCH] for start in range(0, len(items), BATCH)]


def _unit(features: Sequence[torch.Tensor]) -> Vectors:
    vectors: Vectors = normalize(torch.cat(list(features)).double(), dim=-1).numpy()
    return vectors


def _mib(variant: Variant) -> int:
    return sum(record.bytes for record in variant.files.values()) >> 20
