"""Image files to the pixels that a model takes, and those to the numbers it computes with.

Two ways to the same picture. `exact` is what open_clip does, resized by Pillow; it is the
reference. `fast` decodes a large JPEG at a fraction of its size and resizes with torch. What is
a picture at all is decided in `images`, for both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from open_clip.transform import MaybeToTensor, PreprocessCfg, image_transform_v2
from torch import Tensor
from torchvision.transforms import Compose, Normalize, Resize
from torchvision.transforms.v2.functional import resize

from clipray import images
from clipray.encoder_options import Decode

Pixels = NDArray[np.uint8]
Reader = Callable[[bytes], Pixels]
Step = Callable[[Any], Any]

ENOUGH = 4  # a JPEG is decoded at least this many times as large as the model wants it


def pixel_reader(preprocess: Mapping[str, Any], decode: Decode = "exact") -> Reader:
    """What turns an image file into (3, height, width) uint8 pixels; thread-safe, pickles.

    Args:
        preprocess: open_clip's `preprocess_cfg`.
        decode: which way.

    The reader raises ImageError for the same files, whichever way.
    """
    steps = _steps(preprocess)
    # One that keeps the ratio within a box is no Resize, and torchvision has none for it.
    if decode == "fast" and isinstance(steps[0], Resize):
        return _Fast(steps[0], steps[1:-1], int(np.max(preprocess["size"])))
    return _Exact(Compose(steps))


class Normaliser:
    """(n, 3, H, W) uint8 on a device → float32, shifted and scaled as the model wants it."""

    def __init__(self, preprocess: Mapping[str, Any], device: torch.device) -> None:
        shape = (1, 3, 1, 1)
        self._mean = torch.tensor(preprocess["mean"], device=device).view(shape)
        self._std = torch.tensor(preprocess["std"], device=device).view(shape)

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalise a batch."""
        return pixels.float().div_(255).sub_(self._mean).div_(self._std)


@dataclass(frozen=True)
class _Exact:
    crop: Step

    def __call__(self, data: bytes) -> Pixels:
        upright = self.crop(images.decode(data))
        return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))


@dataclass(frozen=True)
class _Fast:
    resize: Resize
    crops: Sequence[Step]  # without the last one, which is for Pillow's modes
    side: int

    def __call__(self, data: bytes) -> Pixels:
        upright = images.decode(data, ENOUGH * self.side)
        whole = torch.from_numpy(np.array(upright)).permute(2, 0, 1)  # (3, H, W), channels last
        small = resize(whole, self.resize.size, self.resize.interpolation, antialias=True)
        for crop in self.crops:
            small = crop(small)
        # Copied by numpy: torch copies with all its threads, which costs more than the resizing.
        return np.ascontiguousarray(small.numpy())


def _steps(preprocess: Mapping[str, Any]) -> list[Step]:
    full = image_transform_v2(PreprocessCfg(**preprocess), is_train=False)
    return [t for t in full.transforms if not isinstance(t, MaybeToTensor | Normalize)]
