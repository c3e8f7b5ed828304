"""Images and texts to unit vectors.

`Encoder` is the seam: embedding, searching and serving know only this protocol. Which model is
run, and with what, is decided in `open_encoder`.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from clipray import clip, images, texts
from clipray.errors import ModelError
from clipray.manifest import ModelIdentity, ModelSource

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?|mps)$")]
Pixels = NDArray[np.uint8]
Vectors = NDArray[np.float32]


class Encoder(Protocol):
    """One CLIP model behind its two towers."""

    identity: ModelIdentity

    def pixels(self, data: bytes) -> Pixels:
        """An image file, decoded, resized and cropped: (3, height, width) uint8; thread-safe.

        Raises:
            ImageError: when it cannot be decoded.
        """
        ...

    def encode_images(self, pixels: Sequence[Pixels]) -> Vectors:
        """(n, dim) float32 unit vectors."""
        ...

    def encode_texts(self, given: Sequence[str], /) -> Vectors:
        """(n, dim) float32 unit vectors."""
        ...


class TorchEncoder:
    """A model run by torch, eagerly."""

    def __init__(self, model: clip.ClipModel, device: torch.device, dtype: torch.dtype) -> None:
        self.identity = model.identity()
        self._geometry = model.geometry()
        self._tokenize = model.tokenize
        self._module: Any = model.module.to(device).eval()
        self._device, self._dtype = device, dtype
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(model.preprocess["mean"], device=device).view(shape)
        self._std = torch.tensor(model.preprocess["std"], device=device).view(shape)

    def pixels(self, data: bytes) -> Pixels:
        """As the protocol says."""
        upright = self._geometry(images.decode(data))
        return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))

    def normalise(self, pixels: Tensor) -> Tensor:
        """(n, 3, H, W) uint8 on the model's device → float32, normalised as the model wants it."""
        return pixels.float().div_(255).sub_(self._mean).div_(self._std)

    @torch.inference_mode()
    def encode_images(self, pixels: Sequence[Pixels]) -> Vectors:
        """As the protocol says."""
        batch = torch.from_numpy(np.stack(pixels)).to(self._device)  # (n, 3, H, W) uint8
        with self._autocast():
            return _to_unit(self._module.encode_image(self.normalise(batch)))

    @torch.inference_mode()
    def encode_texts(self, given: Sequence[str], /) -> Vectors:
        """As the protocol says."""
        tokens = self._tokenize([texts.clean(text) for text in given]).to(self._device)
        with self._autocast():
            return _to_unit(texts.encode(self._module, tokens))

    def _autocast(self) -> torch.autocast:
        enabled = self._dtype is not torch.float32
        return torch.autocast(self._device.type, self._dtype, enabled=enabled)


def open_encoder(
    source: ModelSource, device: str = "auto", precision: Precision = "auto"
) -> Encoder:
    """Load a model to run.

    Args:
        source: which model.
        device: `cpu`, `cuda`, `cuda:1`; `auto` takes a GPU where there is one.
        precision: `auto` is bf16 on a GPU and fp32 elsewhere.

    Raises:
        ModelError: when the model or the device cannot be used.
    """
    chosen = _device(device)
    return TorchEncoder(clip.load(source), chosen, _dtype(precision, chosen))


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ModelError(f"device '{name}': torch sees no GPU here; use --device cpu")
    return device


def _dtype(precision: Precision, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]


def _to_unit(features: Tensor) -> Vectors:
    vectors: Vectors = normalize(features.float(), dim=-1).cpu().numpy()
    return vectors
