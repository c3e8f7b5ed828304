"""The tower that a mode needs, with the preprocessing that the file says.

Size and normalisation belong to the weights, so what the file says of them must be the model's.
How a picture gets its size may differ: the file is then obeyed, and the encoder goes by another
identity, so that an index and the queries on it are always made alike.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import open_clip

from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError, MismatchError, ModelError
from clipray.exported import ExportedFolder, exported_itself, stated_identity
from clipray.manifest import Modality, ModelSource, digest
from clipray.onnx_encoder import Vectors
from clipray.paddle.pretrained import PADDLE_SUFFIXES
from clipray.pixels import Pixels, pixel_reader

FIXED = ("size", "mean", "std")  # what the weights are made for

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tower:
    """An open encoder, one tower of which is asked.

    Attributes:
        source: where the whole model is, for who opens an index made with this tower.
    """

    encoder: Encoder
    source: ModelSource


class Reshaping:
    """An encoder whose pictures get their size in another way.

    Args:
        encoder: gives the vectors.
        preprocess: open_clip's `preprocess_cfg`.
    """

    def __init__(self, encoder: Encoder, preprocess: Mapping[str, Any]) -> None:
        self._encoder, self.preprocess = encoder, preprocess
        self.identity = encoder.identity.model_copy(update={"preprocess": digest(preprocess)})
        self._read = pixel_reader(preprocess)

    def pixels(self, data: bytes, /) -> Pixels:
        """As the protocol says."""
        return self._read(data)

    def gather(self, pixels: Sequence[Pixels]) -> Pixels:
        """As the protocol says."""
        return self._encoder.gather(pixels)

    def encode_images(self, pixels: Sequence[Pixels] | Pixels) -> Vectors:
        """As the protocol says."""
        return self._encoder.encode_images(pixels)

    def encode_texts(self, given: Sequence[str], /) -> Vectors:
        """As the protocol says."""
        return self._encoder.encode_texts(given)


def open_tower(
    place: str, modality: Modality, options: EncoderOptions, said: Mapping[str, Any], where: str
) -> Tower:
    """Open an exported tower, a model folder, or a model by name.

    Args:
        place: what the file gives.
        modality: the tower that will be asked.
        options: how it is run.
        said: what the file says of the preprocessing, see `transforms.preprocess_of`.
        where: key of `place`, which opens the error message.

    Raises:
        ConfigError: a model of PaddlePaddle.
        ModelError: no such model or tower.
        MismatchError: the model is made for another size or normalisation.
    """
    _require_no_paddle(place, where)
    source = source_of(place)
    folder = exported_itself(source)
    try:
        if folder:
            folder.require(modality)
        encoder = open_encoder(source, options)
    except ModelError as error:
        raise ModelError(f"{where}: {error}") from None
    home = _home(folder, modality, source) if folder else source
    return Tower(prepared(encoder, said, place), home.absolute())


def source_of(place: str) -> ModelSource:
    """A folder, or an open_clip name with its tag behind a slash."""
    name, _, tag = place.rpartition("/")
    if not Path(place).exists() and tag in open_clip.list_pretrained_tags_by_model(name):
        return ModelSource(name=name, pretrained=tag)
    return ModelSource(name=place)


def prepared(encoder: Encoder, said: Mapping[str, Any], place: str) -> Encoder:
    """The encoder itself where its preprocessing is what is said, else with the one that is said.

    Raises:
        MismatchError: the model is made for another size or normalisation.
    """
    own = encoder.preprocess
    other = {name: value for name, value in said.items() if not _same(own[name], value)}
    told = "; ".join(f"{name} {value}, not {own[name]}" for name, value in other.items())
    if not other.keys().isdisjoint(FIXED):
        raise MismatchError(
            f"PreProcess.transform_ops says {told}, which {place} is not made for; say what the "
            "model was trained with, or leave transform_ops out"
        )
    if not other:
        return encoder
    log.warning(
        "PreProcess.transform_ops says %s, as %s has it; pictures are prepared as said, and "
        "vectors that were made in the model's own way are refused",
        told,
        place,
    )
    return Reshaping(encoder, {**own, **other})


def _same(own: Any, said: Any) -> bool:
    if isinstance(said, list):
        numbers = [own] * len(said) if isinstance(own, int | float) else own
        return len(numbers) == len(said) and all(map(_near, numbers, said))
    return bool(own == said)


def _near(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=1e-6, abs_tol=1e-9)


def _home(folder: ExportedFolder, modality: Modality, source: ModelSource) -> ModelSource:
    """The model folder that a lone tower comes from, while that is the same; else the tower."""
    manifests = folder.read()
    tower = manifests[modality]
    found = stated_identity(tower.source) if len(manifests) == 1 else None
    same = found is not None and found.fingerprint == tower.identity.fingerprint
    return tower.source if same else source


def _require_no_paddle(place: str, where: str) -> None:
    path = Path(place)
    files = [path, *path.iterdir()] if path.is_dir() else [path]
    found = next((file for file in files if file.suffix in PADDLE_SUFFIXES), None)
    if found:
        raise ConfigError(
            f"{where}: {found} is of PaddlePaddle, which is not read here; give a folder that "
            "`clipray paddle export` wrote, a model folder, or an open_clip name with its tag such "
            "as ViT-B-32/laion2b_s34b_b79k"
        )
