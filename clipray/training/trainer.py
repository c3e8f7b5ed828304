"""The steps of one rank: batch → gradients → update, and all that a run must remember.

Plain torch under DDP, or alone. Who starts the ranks, which batch comes next and where the metrics
go is not known here.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from clipray import clip
from clipray.clip import ClipModel
from clipray.config import Config
from clipray.errors import ClipRayError
from clipray.manifest import ModelFolder
from clipray.pixels import Normaliser
from clipray.training.augment import AugmentConfig, augment
from clipray.training.batch import Batch
from clipray.training.gradients import Gradients, Precision
from clipray.training.loader import LoaderConfig
from clipray.training.locks import LockConfig, lock
from clipray.training.loss import LossConfig
from clipray.training.metrics import Values
from clipray.training.optim import OptimConfig, build_optimizer, set_rates
from clipray.training.peers import Peers

MAX_LOG_SCALE = math.log(100)  # as CLIP did; beyond it training becomes unstable
STATE_FILE = "training.pt"
MOST_SKIPPED = 10  # steps in a row


class Recipe(Config):
    """All that decides the weights that come out, given data and a model to start from."""

    epochs: int = Field(10, ge=1, description="passes over the data")
    precision: Precision = Field("bf16", description="bf16 and fp16 are autocast")
    seed: int = Field(0, ge=0, description="of weights, order, captions and augmentation")
    accumulate: int = Field(
        1, ge=1, description="cut a batch into so many parts, each with all negatives; saves memory"
    )
    grad_checkpointing: bool = Field(False, description="compute twice instead of remembering")
    compile: bool = Field(False, description="compile the model with torch.compile")
    ema: float | None = Field(
        None, gt=0, lt=1, description="result is an average of the weights that decays like this"
    )
    loader: LoaderConfig = LoaderConfig()
    loss: LossConfig = LossConfig()
    lock: LockConfig = LockConfig()
    optim: OptimConfig = OptimConfig()
    augment: AugmentConfig = AugmentConfig()
    augment_until: float = Field(
        1.0, ge=0, le=1, description="share of all steps that augment; the last ones see the data"
    )


@dataclass(frozen=True, slots=True)
class Done:
    """A step that was made, on the device: reading it waits for the device.

    Attributes:
        loss: of this rank's rows.
        norm: of the gradient, before it was clipped.
        scale: logit scale after the step.
        lr: peak rate of the groups.
    """

    step: int
    loss: Tensor
    norm: Tensor
    scale: Tensor
    lr: float
    order: int
    replaced: int
    waited: float
    at: float


class Trainer:
    """Model, optimizer and schedule of one rank.

    Args:
        model: trained in place.
        recipe: how.
        steps: of one epoch.
        peers: the other ranks; all call each method together.
        state: of a checkpoint, from `Trainer.read`.
    """

    def __init__(
        self,
        model: ClipModel,
        recipe: Recipe,
        steps: int,
        peers: Peers,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self._recipe, self._peers = model, recipe, peers
        self._epoch_steps, self._steps = steps, recipe.epochs * steps
        self._normalise = Normaliser(model.preprocess, peers.device)
        self.raw: Any = _prepared(model, recipe).to(peers.device)
        self._average = _average(self.raw, recipe)
        self._optimizer = build_optimizer(self.raw, recipe.optim)
        fp16 = recipe.precision == "fp16"
        self._scaler = torch.amp.GradScaler(peers.device.type, enabled=fp16)
        self.done, self._skipped = 0, 0
        if state is not None:
            self._restore(state)
        self._gradients = Gradients(
            _wrapped(self.raw, recipe, peers),
            recipe.loss,
            recipe.precision,
            recipe.accumulate,
            self._scaler if fp16 else None,
        )
        self._pending: list[Done] = []
        self._worst = 0  # skipped steps in a row

    @property
    def result(self) -> nn.Module:
        """The weights that a finished run gives, as a module."""
        averaged: nn.Module = self._average.module if self._average else self.raw
        return averaged

    def step(self, batch: Batch, waited: float = 0.0) -> None:
        """One update; `waited` seconds for the batch are noted."""
        rate = set_rates(
            self._optimizer, self._recipe.optim, self.done, self._steps, self._epoch_steps
        )
        loss = self._gradients(self._pixels(batch), self._tokens(batch), self._seed())
        norm = self._update()
        with torch.no_grad():
            self.raw.logit_scale.clamp_(0, MAX_LOG_SCALE)
            scale = self.raw.logit_scale.exp()
        if self._average:
            self._average.update_parameters(self.raw)
        self.done += 1
        self._pending.append(
            Done(self.done, loss, norm, scale, rate, batch.order, batch.replaced, waited,
                 time.time())
        )  # fmt: skip

    def drain(self) -> list[Values]:
        """The metrics of the steps since the last call, over all ranks."""
        pending, self._pending = self._pending, []
        if not pending:
            return []
        measured = torch.stack([torch.stack([d.loss, d.norm, d.scale]) for d in pending])
        mine, norms, scales = measured.double().T.tolist()
        sums = self._peers.sum([*mine, *(float(done.replaced) for done in pending)])
        losses, replaced = sums[: len(pending)], sums[len(pending) :]
        values = zip(pending, losses, norms, scales, replaced, strict=True)
        return [self._line(done, *measures) for done, *measures in values]

    def require_finite(self) -> None:
        """See that training has not broken down, as far as it was drained.

        Raises:
            ClipRayError: the gradient was not finite in too many steps in a row.
        """
        if self._worst >= MOST_SKIPPED:
            raise ClipRayError(
                f"the gradient was not finite in {MOST_SKIPPED} steps in a row, up to step "
                f"{self.done}; lower optim.lr, set optim.clip_grad_norm, or take precision bf16 "
                "or fp32"
            )

    def _line(self, done: Done, loss: float, norm: float, scale: float, replaced: float) -> Values:
        skipped = not math.isfinite(norm)
        self._skipped = self._skipped + 1 if skipped else 0
        self._worst = max(self._worst, self._skipped)
        return {
            "step": done.step, "epoch": (done.step - 1) // self._epoch_steps,
            "loss": loss / self._peers.world, "lr": done.lr, "logit_scale": scale,
            "grad_norm": norm, "skipped": float(skipped), "replaced": replaced,
            "order": done.order, "waited": done.waited, "time": done.at,
        }  # fmt: skip

    def save(self, folder: Path, metrics: Mapping[str, float]) -> None:
        """Write a model folder with the state of training beside it; rank 0 calls it alone."""
        files = ModelFolder(folder)
        with_result = ClipModel(
            self.result, self.model.tokenize, self.model.architecture, self.model.preprocess,
            self.model.source,
        )  # fmt: skip
        clip.save(with_result, folder, metrics)
        state = {
            "step": self.done,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "skipped": self._skipped,
        }
        if self._average:
            state |= {"weights": self.raw.state_dict(), "averaged": int(self._average.n_averaged)}
        torch.save(state, files.root / STATE_FILE)

    @staticmethod
    def read(folder: Path) -> dict[str, Any]:
        """The state that `save` wrote, on the CPU."""
        state = torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True)
        return {"result": load_file(ModelFolder(folder).weights), **state}

    def _restore(self, state: Mapping[str, Any]) -> None:
        self.raw.load_state_dict(state.get("weights", state["result"]))
        if self._average:
            self._average.module.load_state_dict(state["result"])
            self._average.n_averaged.fill_(state["averaged"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self.done, self._skipped = state["step"], state["skipped"]

    def _update(self) -> Tensor:
        """Skips itself, on all ranks, when the gradient is not finite."""
        self._scaler.unscale_(self._optimizer)
        trained = [p for p in self.raw.parameters() if p.grad is not None]
        limit = self._recipe.optim.clip_grad_norm or math.inf
        norm = clip_grad_norm_(trained, limit)
        if self._scaler.is_enabled():
            self._scaler.step(self._optimizer)
            self._scaler.update()
        else:
            # The fused optimizer looks at it on the device, so that nobody has to wait.
            self._optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
            self._optimizer.step()
        return norm

    def _pixels(self, batch: Batch) -> Tensor:
        images = batch.images.to(self._peers.device, non_blocking=True)
        if self.done < self._recipe.augment_until * self._steps:
            images = augment(images, batch.seeds, self._recipe.augment)
        pixels = self._normalise(images)
        return pixels.contiguous(memory_format=torch.channels_last)

    def _tokens(self, batch: Batch) -> Tensor:
        return batch.tokens.to(self._peers.device, non_blocking=True)

    def _seed(self) -> int:
        """Of what is random inside the model: the same again when a step is made again."""
        place = self._recipe.seed, self.done, self._peers.rank
        return int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1)


def _prepared(model: ClipModel, recipe: Recipe) -> Any:
    module: Any = model.module.train().to(memory_format=torch.channels_last)
    lock(module, recipe.lock)
    if recipe.grad_checkpointing:
        module.set_grad_checkpointing(True)
    return module


def _average(module: nn.Module, recipe: Recipe) -> AveragedModel | None:
    if recipe.ema is None:
        return None
    decay = get_ema_multi_avg_fn(recipe.ema)  # type: ignore[no-untyped-call]
    return AveragedModel(module, multi_avg_fn=decay, use_buffers=True)


def _wrapped(module: nn.Module, recipe: Recipe, peers: Peers) -> nn.Module:
    if peers.world > 1:
        on_gpu = [peers.device] if peers.device.type == "cuda" else None
        module = DistributedDataParallel(module, on_gpu, gradient_as_bucket_view=True)
    return torch.compile(module) if recipe.compile else module  # type: ignore[return-value]
