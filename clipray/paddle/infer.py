"""`clipray paddle infer`: the vectors of images and texts, by a model that is not exported."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from clipray import clip
from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import ConfigError, ImageError, InputError
from clipray.exported import exported_itself
from clipray.manifest import ModelSource
from clipray.paddle.clip_file import ClipFile
from clipray.paddle.lines import read_lines
from clipray.paddle.pretrained import finished
from clipray.pixels import Pixels
from clipray.report import DONE, DONE_WITH_REJECTS, Report
from clipray.sources import pictures_below
from clipray.torch_encoder import TorchEncoder

log = logging.getLogger(__name__)

BATCH = 32

Vector = tuple[float, ...]
ItemT = TypeVar("ItemT")


class PaddleInferConfig(ClipFile):
    """Print the unit vectors of Global.infer_imgs, or of the lines of Global.texts, as JSON."""


class InferReport(Report):
    """Vectors by path or text.

    Attributes:
        embeddings: path of an image, or a text → its unit vector.
        rejected: path → why it has none.
    """

    embeddings: dict[str, Vector]
    rejected: dict[str, str]

    @property
    def exit_code(self) -> int:
        """Whether an image was left out."""
        return DONE_WITH_REJECTS if self.rejected else DONE

    def summary(self) -> str:
        """The vectors as a JSON object."""
        return json.dumps(self.embeddings, ensure_ascii=False)


def infer(config: PaddleInferConfig) -> InferReport:
    """Embed what the file names.

    Raises:
        ConfigError: nothing is named, or a key cannot be obeyed.
        InputError: what is named is not there, or no image of it can be used.
        ModelError: the model cannot be used.
    """
    paths = _find_images(config.Global.infer_imgs)
    texts = read_lines(config.Global.texts) if config.Global.texts else []
    if not paths and not texts:
        raise ConfigError(
            "Global.infer_imgs: is missing; give an image or a folder of images (-o "
            "Global.infer_imgs=…), or Global.texts, a file with one text a line"
        )
    encoder = _open(config)
    embeddings, rejected = _embed_images(encoder, paths)
    for batch in _cut(texts):
        embeddings |= zip(batch, map(_plain, encoder.encode_texts(batch)), strict=True)
    if not embeddings:
        raise InputError("; ".join(f"{path}: {why}" for path, why in rejected.items()))
    return InferReport(embeddings=embeddings, rejected=rejected)


def _open(config: PaddleInferConfig) -> Encoder:
    """The model, or the tower that `export` has written."""
    device = "cuda" if config.Global.device == "gpu" else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("Global.device: found gpu, but torch sees no GPU here; give cpu")
    given = config.Global.pretrained_model
    if given is not None and exported_itself(ModelSource(name=given)):
        return open_encoder(ModelSource(name=given), EncoderOptions(device=device))
    model = clip.load(*finished(config))
    return TorchEncoder(model, torch.device(device), torch.float32)


def _embed_images(
    encoder: Encoder, paths: Sequence[Path]
) -> tuple[dict[str, Vector], dict[str, str]]:
    embeddings: dict[str, Vector] = {}
    rejected: dict[str, str] = {}
    for batch in _cut(paths):
        pixels = dict(_decode(encoder, batch, rejected))
        if pixels:
            vectors = encoder.encode_images(list(pixels.values()))
            embeddings |= zip(pixels, map(_plain, vectors), strict=True)
    return embeddings, rejected


def _decode(
    encoder: Encoder, paths: Sequence[Path], rejected: dict[str, str]
) -> Iterator[tuple[str, Pixels]]:
    for path in paths:
        try:
            yield str(path), encoder.pixels(path.read_bytes())
        except (ImageError, OSError) as error:
            rejected[str(path)] = str(error)
            log.warning("%s: left out, %s", path, error)


def _cut(items: Sequence[ItemT]) -> Iterator[Sequence[ItemT]]:
    return (items[start : start + BATCH] for start in range(0, len(items), BATCH))


def _plain(vector: NDArray[np.float32]) -> Vector:
    return tuple(vector.tolist())


def _find_images(given: str | None) -> list[Path]:
    if given is None:
        return []
    root = Path(given)
    if root.is_file():
        return [root]
    found = [root / name for name in pictures_below(root)]
    if not found:
        raise InputError(f"Global.infer_imgs: {given}: no such image, and no folder of images")
    return found
