"""Towers that keep their weights while the rest is trained, by open_clip's own functions.

LiT: Zhai et al. 2021, arXiv:2111.07991. Optimizers are not known here.
"""

from collections.abc import Callable
from typing import Any, Self

from pydantic import Field, model_validator
from torch import nn

from clipray.config import Config
from clipray.errors import ConfigError

_LOGIT = ("logit_scale", "logit_bias")


class LockConfig(Config):
    """Which tower is locked, and how much of its upper end is not."""

    image: bool = Field(False, description="lock the image tower")
    text: bool = Field(False, description="lock the text tower")
    image_unlocked_groups: int = Field(
        0, ge=0, description="groups of layers at the upper end that are trained all the same"
    )
    text_unlocked_layers: int = Field(
        0, ge=0, description="layers at the upper end that are trained all the same"
    )
    freeze_bn: bool = Field(
        False, description="keep the running statistics of locked batch norms as well"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.image and (self.image_unlocked_groups or self.freeze_bn):
            raise ValueError("image_unlocked_groups and freeze_bn need lock.image")
        if not self.text and self.text_unlocked_layers:
            raise ValueError("text_unlocked_layers needs lock.text")
        return self


def lock(module: nn.Module, config: LockConfig) -> None:
    """Freeze parameters, before the module is wrapped and its optimizer built.

    What open_clip locks: all of a tower of its own with the projection to the shared space; of a
    timm or Hugging Face tower all but that projection. Groups and layers that stay unlocked count
    from the upper end, the projection of open_clip's own towers is the first.

    Args:
        module: open_clip's, changed in place; with `freeze_bn` its batch norms are replaced.
        config: what to lock.

    Raises:
        ConfigError: the tower cannot be locked that way, or nothing is left to train.
    """
    model: Any = module
    if config.image:
        groups, frozen_bn = config.image_unlocked_groups, config.freeze_bn
        _freeze("lock.image", module, lambda: model.lock_image_tower(groups, frozen_bn))
    if config.text:
        layers = config.text_unlocked_layers
        _freeze("lock.text", module, lambda: model.lock_text_tower(layers))
    _require_trained(module)


def _freeze(key: str, module: nn.Module, freeze: Callable[[], None]) -> None:
    before = len(_trained(module))
    try:
        freeze()
    except Exception as error:  # open_clip's towers raise whatever they raise
        raise ConfigError(
            f"{key}: this model cannot be locked that way ({error or type(error).__name__})"
        ) from error
    if len(_trained(module)) == before:
        raise ConfigError(f"{key}: nothing of the tower is locked; leave less of it unlocked")


def _require_trained(module: nn.Module) -> None:
    if not _trained(module) - set(_LOGIT):
        raise ConfigError(
            "lock: both towers are locked as a whole and nothing is left to train; unlock one, or "
            "set image_unlocked_groups or text_unlocked_layers"
        )


def _trained(module: nn.Module) -> set[str]:
    return {name for name, parameter in module.named_parameters() if parameter.requires_grad}
