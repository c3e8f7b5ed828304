"""The gradients of one rank's share of the global batch, at once or in micro-batches.

Micro-batches save the memory of activations and change nothing else: every sample still has the
whole global batch as its negatives. Optimizers and data are not known here.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.amp.grad_scaler import GradScaler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from clipray.errors import ConfigError
from clipray.training.layers import most_tokens
from clipray.training.loss import Features, Loss, LossConfig

Precision = Literal["fp32", "bf16", "fp16"]

FEW_TOKENS = 128
ALL_KERNELS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}  # fp32 needs none


@dataclass(frozen=True, slots=True)
class _Part:
    """One micro-batch: (part, 3, height, width) pixels, (part, context length) tokens, its seed."""

    pixels: Tensor
    tokens: Tensor
    seed: int


class Gradients:
    """Computes gradients by cached representations (GradCache: Gao et al. 2021, arXiv:2101.06983).

    The first pass makes the features of all micro-batches and keeps nothing else. The loss of all
    of them, alone, gives the gradient of each feature. The second pass makes the features again,
    micro-batch by micro-batch, and takes those gradients on to the weights.

    Args:
        module: open_clip's, or what wraps it, such as DDP.
        loss_config: the objective.
        precision: of the model under autocast; the loss is always fp32.
        micro_batches: how many; a batch with fewer rows is cut into fewer.
        scaler: multiplies the loss, for fp16; None for 1.

    Raises:
        ConfigError: the model lacks the logit bias that the loss needs.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_config: LossConfig,
        precision: Precision,
        micro_batches: int = 1,
        scaler: GradScaler | None = None,
    ) -> None:
        if loss_config.name == "siglip" and getattr(_inner(module), "logit_bias", None) is None:
            raise ConfigError(
                "loss.name: siglip needs a model with a logit bias, and this one has none; give "
                "a model_cfg with init_logit_bias (-10 in the paper), or train with contrastive"
            )
        self._module, self._loss = module, Loss(loss_config)
        self._precision, self._count, self._scaler = precision, micro_batches, scaler
        self._kernels = _kernels(_inner(module), precision)

    def __call__(self, pixels: Tensor, tokens: Tensor, seed: int) -> Tensor:
        """Put the gradients on the parameters, in place of those that were there.

        Args:
            pixels: (batch, 3, height, width) float, normalised, on the module's device.
            tokens: (batch, context length) int64, on the same device.
            seed: of dropout in this step. Torch's generators are seeded with it, on all devices.

        Returns:
            scalar loss of this rank's rows, not scaled and without a gradient.
        """
        self._module.zero_grad(set_to_none=True)
        parts = _parts(pixels, tokens, self._count, seed)
        with sdpa_kernel(self._kernels):  # around the backward pass as well: layers may run again
            return self._at_once(parts[0]) if len(parts) == 1 else self._cached(parts)

    def _at_once(self, part: _Part) -> Tensor:
        loss = self._loss(self._features(part))
        self._scaled(loss).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _cached(self, parts: Sequence[_Part]) -> Tensor:
        leaves = self._first_pass(parts)
        loss = self._loss(leaves)  # ranks exchange features here, once a step
        self._second_pass(parts, torch.autograd.grad(self._scaled(loss), leaves.tensors))
        return loss.detach()

    def _first_pass(self, parts: Sequence[_Part]) -> Features:
        """The features of all parts, as leaves of the loss's own graph."""
        with torch.no_grad(), _kept_statistics(self._module):
            found = [self._features(part) for part in parts]
        images = torch.cat([features.images for features in found])
        texts = torch.cat([features.texts for features in found])
        tensors = (images, texts, *found[0].tensors[2:])
        return Features(*(tensor.detach().requires_grad_() for tensor in tensors))

    def _second_pass(self, parts: Sequence[_Part], gradients: Sequence[Tensor]) -> None:
        images, texts, *scale_and_bias = gradients
        rows = zip(images.chunk(len(parts)), texts.chunk(len(parts)), strict=True)
        *others, (last, last_rows) = zip(parts, rows, strict=True)
        # DDP then exchanges the gradients in the last backward pass, when they are complete.
        with getattr(self._module, "no_sync", nullcontext)():
            for part, wanted in others:
                _backward(self._features(part).tensors[:2], wanted)
        _backward(self._features(last).tensors, (*last_rows, *scale_and_bias))

    def _features(self, part: _Part) -> Features:
        torch.manual_seed(part.seed)  # dropout draws the same in both passes
        kind = AUTOCAST.get(self._precision)
        with torch.autocast(part.pixels.device.type, kind, enabled=kind is not None):
            out = self._module(part.pixels, part.tokens)
        return Features(*(tensor.float() for tensor in _outputs(out)))

    def _scaled(self, loss: Tensor) -> Tensor:
        return loss if self._scaler is None else self._scaler.scale(loss)


def _inner(module: nn.Module) -> Any:
    return getattr(module, "module", module)


def _kernels(module: Any, precision: Precision) -> list[SDPBackend]:
    """Kernels of attention that may be taken.

    On a CPU the backward pass of the fused one in half precision takes 2 to 3 times as long as
    plain products do, while sequences are short (torch 2.14; about equal at 200 tokens).
    """
    on_cpu = next(module.parameters()).device.type == "cpu"
    few = 0 < most_tokens(module) <= FEW_TOKENS
    return [SDPBackend.MATH] if on_cpu and few and precision in AUTOCAST else ALL_KERNELS


def _parts(pixels: Tensor, tokens: Tensor, count: int, seed: int) -> list[_Part]:
    chunks = pixels.chunk(count)
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(2**62, (len(chunks),), generator=generator).tolist()
    return [_Part(*part) for part in zip(chunks, tokens.chunk(count), seeds, strict=True)]


def _backward(outputs: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Go on backwards from outputs whose gradients are known; a locked tower's have none."""
    pairs = [(out, given) for out, given in zip(outputs, gradients, strict=True)
             if out.requires_grad]  # fmt: skip
    torch.autograd.backward([out for out, _ in pairs], [given for _, given in pairs])


def _outputs(out: Any) -> tuple[Tensor, ...]:
    """Images, texts, scale and, where the model has one, bias."""
    if not isinstance(out, dict):
        return tuple(out[:4])
    names = ("image_features", "text_features", "logit_scale", "logit_bias")
    return tuple(out[name] for name in names if out.get(name) is not None)


@contextmanager
def _kept_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms see the micro-batches twice; their running statistics must count them once."""
    norms = [part for part in module.modules()
             if isinstance(part, _BatchNorm) and part.track_running_stats]  # fmt: skip
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
