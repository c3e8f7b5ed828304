"""Images and texts to unit vectors.

`Encoder` is the seam: embedding, searching and serving know only this protocol. Which model is
run, and with what, is decided in `open_encoder`.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from clipray import clip
from clipray.encoder_options import EncoderOptions, Precision
from clipray.errors import ModelError
from clipray.exported import ExportedFolder, exported_beside, exported_itself
from clipray.manifest import Modality, ModelIdentity, ModelSource
from clipray.onnx_encoder import OnnxEncoder, choose_device
from clipray.pixels import Pixels
from clipray.torch_encoder import TorchEncoder, Vectors


class Encoder(Protocol):
    """One CLIP model behind its two towers.

    Attributes:
        preprocess: open_clip's `preprocess_cfg`.
    """

    identity: ModelIdentity
    preprocess: Mapping[str, Any]

    def pixels(self, data: bytes, /) -> Pixels:
        """An image file, decoded, resized and cropped: (3, height, width) uint8; thread-safe.

        Raises:
            ImageError: when it cannot be decoded.
        """
        ...

    def gather(self, pixels: Sequence[Pixels]) -> Pixels:
        """A batch (n, 3, height, width) that `encode_images` takes as it is; thread-safe."""
        ...

    def encode_images(self, pixels: Sequence[Pixels] | Pixels) -> Vectors:
        """(n, dim) float32 unit vectors; `pixels` may be what `gather` gave."""
        ...

    def encode_texts(self, given: Sequence[str], /) -> Vectors:
        """(n, dim) float32 unit vectors."""
        ...


def open_encoder(source: ModelSource, options: EncoderOptions) -> Encoder:
    """Load a model to run.

    Raises:
        ModelError: when the model, the device or the precision cannot be used.
        DamagedError: when a file of an exported model was changed.
    """
    folder = _exported(source, options)
    if folder:
        device_name = choose_device(options.device)
        return OnnxEncoder(folder, device_name, options.precision, options.decode)
    _require_torch_can(options.precision)
    device = _device(options.device)
    dtype = _dtype(options.precision, device)
    return TorchEncoder(clip.load(source), device, dtype, options.decode)


def identify(
    source: ModelSource, options: EncoderOptions, towers: Sequence[Modality] = ()
) -> ModelIdentity:
    """What `open_encoder` would open; of an exported model without reading its weights.

    Args:
        source: which model.
        options: how it is run.
        towers: those that will be asked.

    Raises:
        ModelError: when the model, a tower or the precision cannot be used, on whatever device.
    """
    folder = _exported(source, options)
    if folder:
        manifests = folder.read()
        for name in towers:
            folder.require(name)
        for name, manifest in manifests.items():
            folder.tower(name).choose(manifest, options.precision)
        return next(iter(manifests.values())).identity
    _require_torch_can(options.precision)
    return clip.load(source).identity()


def _exported(source: ModelSource, options: EncoderOptions) -> ExportedFolder | None:
    if options.backend == "onnx":
        return exported_beside(source)
    return exported_itself(source) if options.backend == "auto" else None


def _require_torch_can(precision: Precision) -> None:
    if precision == "int8":
        raise ModelError(
            "precision int8: only exported models have it; `clipray export --precision int8` "
            "makes one, and --backend onnx runs it"
        )


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
