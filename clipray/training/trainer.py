"""The training loop of one rank: batch → loss → update.

Plain torch under DDP, or alone. Who starts the ranks, and where the metrics go, is not known here.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from clipray.clip import ClipModel
from clipray.config import Config
from clipray.pixels import Normaliser, pixel_reader
from clipray.training.augment import AugmentConfig, augment
from clipray.training.loader import Batch, LoaderConfig, Plan
from clipray.training.loss import contrastive_loss
from clipray.training.optim import OptimConfig, build_optimizer, set_rates

MAX_LOG_SCALE = math.log(100)  # as CLIP did; beyond it training becomes unstable


class Recipe(Config):
    """All that decides the weights that come out, given data and a model to start from."""

    epochs: int = Field(10, ge=1, description="passes over the data")
    precision: Literal["fp32", "bf16"] = Field("bf16", description="bf16 is autocast")
    seed: int = Field(0, ge=0, description="of weights, order, captions and augmentation")
    loader: LoaderConfig = LoaderConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    augment_until: float = Field(
        1.0, ge=0, le=1, description="share of all steps that augment; the last ones see the data"
    )


class Trainer:
    """Model, optimizer and schedule of one rank.

    Args:
        model: trained in place.
        recipe: how.
        plan: the order of samples; gives the number of steps.
        device: where this rank computes.
        wrap: makes the module that is called, such as DDP's.
    """

    def __init__(
        self,
        model: ClipModel,
        recipe: Recipe,
        plan: Plan,
        device: torch.device,
        wrap: Callable[[nn.Module], nn.Module],
    ) -> None:
        self._recipe, self._plan, self._device = recipe, plan, device
        self.pixels = pixel_reader(model.preprocess)
        self._normalise = Normaliser(model.preprocess, device)
        self._raw: Any = model.module.to(device).train().to(memory_format=torch.channels_last)
        self._module = wrap(self._raw)
        self._optimizer = build_optimizer(self._raw, recipe.optim)
        self._steps = recipe.epochs * plan.steps
        self._done = 0
        self._losses: list[Tensor] = []

    def epoch(self, batches: Iterator[Batch]) -> Iterator[dict[str, float]]:
        """Train on the batches of one epoch; yields the metrics of each step."""
        self._losses = []
        for batch in batches:
            yield self._step(batch)

    def loss(self) -> float:
        """Mean loss of the epoch, over all ranks."""
        mean = torch.stack(self._losses).mean()
        if self._plan.world > 1:
            dist.all_reduce(mean)
        return mean.item() / self._plan.world

    def _step(self, batch: Batch) -> dict[str, float]:
        optim, per_epoch = self._recipe.optim, self._plan.steps
        rate = set_rates(self._optimizer, optim, self._done, self._steps, per_epoch)
        loss = self._loss(batch)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        if self._recipe.optim.clip_grad_norm:
            clip_grad_norm_(self._raw.parameters(), self._recipe.optim.clip_grad_norm)
        self._optimizer.step()
        with torch.no_grad():
            self._raw.logit_scale.clamp_(0, MAX_LOG_SCALE)
        self._done += 1
        self._losses.append(loss.detach())
        scale = self._raw.logit_scale.exp().item()
        return {"step": self._done, "loss": loss.item(), "lr": rate, "logit_scale": scale}

    def _loss(self, batch: Batch) -> Tensor:
        images = batch.images
        if self._done < self._recipe.augment_until * self._steps:
            images = augment(images, batch.seeds, self._recipe.augment)
        pixels = self._normalise(images.to(self._device)).contiguous(
            memory_format=torch.channels_last
        )
        bf16 = self._recipe.precision == "bf16"
        with torch.autocast(self._device.type, torch.bfloat16, enabled=bf16):
            out = self._module(pixels, batch.tokens.to(self._device))
        images, texts, scale = _features(out)
        return contrastive_loss(images.float(), texts.float(), scale)


def _features(out: Any) -> tuple[Tensor, Tensor, Tensor]:
    if isinstance(out, dict):
        return out["image_features"], out["text_features"], out["logit_scale"]
    return out[0], out[1], out[2]
