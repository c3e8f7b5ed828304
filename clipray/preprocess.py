"""How a picture is made ready for a model, where that is to differ from the model's own way."""

from typing import Annotated, Any, Literal

from pydantic import Field

from clipray.config import Config

Side = Annotated[int, Field(ge=1)]
Colours = tuple[float, float, float]
Spreads = tuple[
    Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]
]


class PreprocessConfig(Config):
    """Parts of open_clip's `preprocess_cfg`; what is not given stays as the model has it."""

    size: Side | tuple[Side, Side] | None = Field(
        None, description="side of the pictures, or height and width; the model is made to fit"
    )
    mean: Colours | None = Field(None, description="of red, green and blue, each from 0 to 1")
    std: Spreads | None = Field(None, description="of red, green and blue")
    interpolation: Literal["bicubic", "bilinear"] | None = Field(None, description="of the resize")
    resize_mode: Literal["shortest", "longest", "squash"] | None = Field(
        None, description="shortest side and crop, longest side and pad, or both sides"
    )

    def forced_size(self, own: Any) -> int | tuple[int, int] | None:
        """The size to force on a model; None where its `own`, a side or a pair, is the one asked.

        A square is one number, as open_clip writes it.
        """
        if self.size is None or _pair(self.size) == _pair(own):
            return None
        height, width = _pair(self.size)
        return height if height == width else (height, width)

    def forced(self) -> dict[str, Any]:
        """What open_clip takes as `force_preprocess_cfg`; the size follows the model's."""
        return self.model_dump(mode="json", exclude_none=True, exclude={"size"})


OWN = PreprocessConfig()


def _pair(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    height, width = size
    return height, width
