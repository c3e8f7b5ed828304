"""PaddleClas's list of image transforms, as open_clip's preprocessing.

What the list says in PaddleClas, and here:

- `ResizeImage` with `size` forces a picture into that box, whatever its shape (`resize_mode`
  squash); with `resize_short` it keeps the shape and makes the short side that long (shortest).
  Without `interpolation` PaddleClas takes OpenCV's bilinear one; here it then stays that of the
  model, and pictures are always resized by Pillow, as CLIP models are trained.
- `CropImage` cuts the middle out.
- `NormalizeImage` computes (x * scale - mean) / std over pixels x of 0 to 255, before
  `ToCHWImage` (`order` '' or 'hwc') or behind it ('chw').

open_clip resizes and crops to one size, so a list with two sizes cannot be done and is refused.
"""

import math
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from clipray.config import Config
from clipray.errors import ConfigError

WHITE = 255.0  # the largest pixel
NUMBER = r"\s*([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*"
EXPECTED = (
    "ResizeImage, CropImage where it is wanted, then NormalizeImage and ToCHWImage; another list "
    "gives pixels that a CLIP model does not take"
)


def _number(value: Any) -> Any:
    """A number, or a fraction as text: YAML reads `1.0/255.0` as a string."""
    if not isinstance(value, str):
        return value
    matched = re.fullmatch(f"{NUMBER}(?:/{NUMBER})?", value)
    try:
        return float(matched[1]) / float(matched[2] or 1) if matched else value
    except (ValueError, ZeroDivisionError):
        raise ValueError("expected a number or a fraction such as 1.0/255.0") from None


Side = Annotated[int, Field(ge=1)]
Size = Side | tuple[Side, Side]
Triple = tuple[float, float, float]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Scale = Annotated[Positive, BeforeValidator(_number)]


class Resize(Config):
    """`ResizeImage`."""

    size: Size | None = Field(None, description="both sides, or [width, height]; squashes")
    resize_short: Side | None = Field(None, description="the short side; keeps the shape")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(
        None, description="by default the model's"
    )
    backend: Literal["pil"] = Field("pil", description="pictures are resized by Pillow")

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.size is None) == (self.resize_short is None):
            raise ValueError("give exactly one of size, resize_short")
        return self


class Crop(Config):
    """`CropImage`."""

    size: Size = Field(description="both sides, or [width, height]")


class Normalize(Config):
    """`NormalizeImage`."""

    scale: Scale = Field(1 / WHITE, description="number or fraction; pixels are multiplied by it")
    mean: Triple = Field(description="of red, green, blue, scaled")
    std: tuple[Positive, Positive, Positive] = Field(description="likewise")
    order: Literal["", "hwc", "chw"] | None = Field(
        None, description="chw behind ToCHWImage, '' or hwc before it"
    )
    channel_num: Literal[3] = Field(3, description="CLIP models take three")


class ToChannelsFirst(Config):
    """`ToCHWImage`, which has no keys."""


class Transform(Config):
    """One entry of the list: a mapping with one key."""

    ResizeImage: Resize | None = None
    CropImage: Crop | None = None
    NormalizeImage: Normalize | None = None
    ToCHWImage: ToChannelsFirst | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected a mapping with one key, the name of a transform")
        if self.kind != "ToCHWImage" and getattr(self, self.kind) is None:
            raise ValueError(f"{self.kind} has no keys; it needs some")
        return self

    @property
    def kind(self) -> str:
        """The name of the transform."""
        return next(iter(self.model_fields_set))


def preprocess_of(ops: Sequence[Transform], where: str) -> dict[str, Any]:
    """What the list says of open_clip's `preprocess_cfg`.

    Args:
        ops: the list; an empty one says nothing.
        where: key of the list, which opens the error message.

    Returns:
        `size` [height, width], `resize_mode`, `mean` and `std` of pixels of 0 to 1, and
        `interpolation` where the list has it; what it does not say stays that of the model.

    Raises:
        ConfigError: naming what was found and expected, for what cannot be done.
    """
    if not ops:
        return {}
    kinds = [op.kind for op in ops]
    order = [kind for kind in kinds if kind != "CropImage"]
    cropped = kinds[1:2] == ["CropImage"]
    if (
        len(kinds) != 3 + cropped
        or order[:1] != ["ResizeImage"]
        or sorted(order[1:])
        != [
            "NormalizeImage",
            "ToCHWImage",
        ]
    ):
        raise ConfigError(f"{where}: found {', '.join(kinds)}; expected {EXPECTED}")
    given = {op.kind: getattr(op, op.kind) for op in ops}
    shape = _geometry(given["ResizeImage"], given.get("CropImage"), where)
    return shape | _normalisation(given["NormalizeImage"], order[1] == "ToCHWImage", where)


def _geometry(resize: Resize, crop: Crop | None, where: str) -> dict[str, Any]:
    wanted = _box(crop.size) if crop else None
    short = resize.resize_short
    box = _box(resize.size or short or 1)
    if wanted is None and short:
        raise ConfigError(
            f"{where}.ResizeImage.resize_short: found {short} and no CropImage, which leaves "
            f"pictures of all shapes; add CropImage with size {short}, or give size"
        )
    if wanted and wanted != box:
        raise ConfigError(
            f"{where}.CropImage.size: found {_told(wanted)} behind ResizeImage to {_told(box)}, "
            "expected the same; open_clip resizes and crops to one size"
        )
    mode = {"size": list(box), "resize_mode": "shortest" if short else "squash"}
    return mode | ({"interpolation": resize.interpolation} if resize.interpolation else {})


def _normalisation(normalize: Normalize, channels_first: bool, where: str) -> dict[str, Any]:  # noqa: FBT001
    fitting = ("chw",) if channels_first else ("", "hwc")
    if normalize.order is not None and normalize.order not in fitting:
        place = "behind" if channels_first else "before"
        raise ConfigError(
            f"{where}.NormalizeImage.order: found '{normalize.order}' {place} ToCHWImage, expected "
            + " or ".join(f"'{name}'" for name in fitting)
        )
    scale = normalize.scale * WHITE  # what the pixels of 0 to 1 would be multiplied by
    if math.isclose(scale, 1):
        return {"mean": list(normalize.mean), "std": list(normalize.std)}
    return {
        "mean": [value / scale for value in normalize.mean],
        "std": [value / scale for value in normalize.std],
    }


def _box(size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width)."""
    return (size, size) if isinstance(size, int) else (size[1], size[0])


def _told(box: tuple[int, int]) -> str:
    return f"{box[1]} x {box[0]}"
