"""The optimizer and the learning-rate schedule."""

import math
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from clipray.config import Config


class OptimConfig(Config):
    """AdamW, linear warm-up, then a half cosine down to `end_lr`."""

    lr: float = Field(5e-4, gt=0, description="peak learning rate")
    end_lr: float = Field(0.0, ge=0, description="learning rate of the last step")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps that warm up")
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float = Field(0.98, ge=0, lt=1)
    epsilon: float = Field(1e-6, gt=0)
    weight_decay: float = Field(0.2, ge=0, description="not for biases, norms and logit scale")
    clip_grad_norm: float | None = Field(None, gt=0, description="cut the gradient to this norm")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="after the warm-up")


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only (vectors and scalars are gains and biases)."""
    trained = [p for p in module.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    return torch.optim.AdamW(groups, config.lr, betas, config.epsilon, fused=True)


def learning_rate(config: OptimConfig, step: int, steps: int) -> float:
    """Learning rate of step `step`, counted from 0, of `steps`."""
    warm = round(config.warmup * steps)
    if step < warm:
        return config.lr * (step + 1) / warm
    if config.schedule == "constant":
        return config.lr
    done = (step - warm) / max(1, steps - warm)
    return config.end_lr + (config.lr - config.end_lr) * (1 + math.cos(math.pi * done)) / 2
