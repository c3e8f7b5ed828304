"""The optimizer, and the learning rate of every step and layer."""

import math
from collections import defaultdict
from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import nn

from clipray.config import Config
from clipray.training.layers import layer_scales

_WARMUP = 0.05  # of all steps, where nothing else is asked for
_LOGIT = ("logit_scale", "logit_bias")


class OptimConfig(Config):
    """AdamW, linear warm-up, then a half cosine down to `end_lr`."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    start_lr: float = Field(0.0, ge=0, description="learning rate that the warm-up rises from")
    end_lr: float = Field(0.0, ge=0, description="learning rate that the cosine falls to")
    warmup: float | None = Field(
        None, ge=0, lt=1, description="share of all steps that warm up; 0.05 where none is given"
    )
    warmup_steps: int | None = Field(None, ge=0, description="steps that warm up, instead")
    warmup_epochs: float | None = Field(None, ge=0, description="epochs that warm up, instead")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")
    beta1: float = Field(0.9, ge=0, lt=1, description="decay of the mean of gradients")
    beta2: float = Field(0.98, ge=0, lt=1, description="decay of the mean of their squares")
    epsilon: float = Field(1e-6, gt=0, description="added to the root of the latter")
    weight_decay: float = Field(0.2, ge=0, description="never of the logit scale and bias")
    decay_bias_and_norm: bool = Field(False, description="weight decay of biases and norms too")
    layer_decay: float | None = Field(
        None, gt=0, le=1, description="each layer's rate is this times that of the layer above it"
    )
    clip_grad_norm: float | None = Field(None, gt=0, description="cut the gradient to this norm")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = ("warmup", "warmup_steps", "warmup_epochs")
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are both given; give one length of warm-up")
        return self


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW over the parameters that are trained, in groups of equal rate and weight decay.

    Each group carries `lr_scale`, its rate as a share of the peak rate.

    Raises:
        ConfigError: `layer_decay` for a tower whose layers are not known.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decay = 1.0 if config.layer_decay is None else config.layer_decay
    scales = layer_scales([name for name, _ in module.named_parameters()], decay)
    groups: dict[tuple[float, float], list[nn.Parameter]] = defaultdict(list)
    for name, parameter in trained:
        groups[scales[name], _weight_decay(name, parameter, config)].append(parameter)
    settings = [
        {"params": groups[key], "lr_scale": key[0], "weight_decay": key[1]}
        for key in sorted(groups, reverse=True)
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(settings, config.lr, betas, config.epsilon, fused=True)


def _weight_decay(name: str, parameter: nn.Parameter, config: OptimConfig) -> float:
    if name in _LOGIT:
        return 0.0
    # Vectors and scalars are biases and the gains of norms.
    decays = parameter.ndim >= 2 or config.decay_bias_and_norm
    return config.weight_decay if decays else 0.0


def set_rates(
    optimizer: torch.optim.Optimizer,
    config: OptimConfig,
    step: int,
    steps: int,
    steps_per_epoch: int,
) -> float:
    """Give every group the learning rate of a step; returns that of the topmost layer."""
    rate = learning_rate(config, step, steps, steps_per_epoch)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["lr_scale"]
    return rate


def learning_rate(config: OptimConfig, step: int, steps: int, steps_per_epoch: int) -> float:
    """Learning rate of step `step`, counted from 0, of `steps`."""
    warm = _warm_steps(config, steps, steps_per_epoch)
    if step < warm:
        return config.start_lr + (config.lr - config.start_lr) * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    done = (step - warm) / max(1, steps - warm)
    return config.end_lr + (config.lr - config.end_lr) * (1 + math.cos(math.pi * done)) / 2


def _warm_steps(config: OptimConfig, steps: int, steps_per_epoch: int) -> int:
    if config.warmup_steps is not None:
        return config.warmup_steps
    if config.warmup_epochs is not None:
        return round(config.warmup_epochs * steps_per_epoch)
    return round((_WARMUP if config.warmup is None else config.warmup) * steps)
