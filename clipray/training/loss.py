"""What training lowers: the contrastive loss of CLIP or the sigmoid loss of SigLIP.

Both are of the global batch: a rank scores its rows against those of all ranks, and what it
returns is such that the mean over ranks, as DDP takes it of the gradients, is the loss of the
batch as a whole. What the features come from is not known here.
"""

from dataclasses import dataclass
from typing import Literal, Self

import torch
import torch.distributed as dist
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid
from torch.utils.checkpoint import checkpoint

from clipray.config import Config


class LossConfig(Config):
    """The objective; the names of the options are open_clip's."""

    name: Literal["contrastive", "siglip"] = Field(
        "contrastive", description="CLIP's softmax over the batch, or SigLIP's sigmoid of each pair"
    )
    weight: float = Field(1.0, gt=0, description="what the loss is multiplied by")
    local_loss: bool = Field(
        True, description="contrastive: a rank scores its own rows only, and not all rows again"
    )
    gather_with_grad: bool = Field(
        True,
        description="contrastive: gradients reach other ranks' features too; without it they are "
        "1 / ranks of what they should be (half at two), as with open_clip's defaults",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.local_loss and not self.gather_with_grad:
            raise ValueError(
                "local_loss without gather_with_grad has a wrong gradient: no rank's features "
                "would learn from the rows of the others; set local_loss to false as well"
            )
        return self


@dataclass(frozen=True, slots=True)
class Features:
    """What a model makes of one rank's images and texts.

    Attributes:
        images: (batch, dim) unit vectors.
        texts: (batch, dim) unit vectors, row i belongs to image i.
        logit_scale: one number, the factor itself and not its logarithm.
        logit_bias: one number; None where the model has none.
    """

    images: Tensor
    texts: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there, in the order of the attributes."""
        bias = () if self.logit_bias is None else (self.logit_bias,)
        return (self.images, self.texts, self.logit_scale, *bias)


class Loss:
    """The loss that a configuration asks for, as a function of the features."""

    def __init__(self, config: LossConfig) -> None:
        self._config = config

    def __call__(self, features: Features) -> Tensor:
        """A scalar, whose mean over ranks is the loss of the global batch."""
        config = self._config
        if config.name == "siglip":
            return config.weight * siglip_loss(*features.tensors)
        return config.weight * contrastive_loss(
            *features.tensors,
            local_loss=config.local_loss,
            gather_with_grad=config.gather_with_grad,
        )


def contrastive_loss(
    images: Tensor,
    texts: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    *,
    local_loss: bool = True,
    gather_with_grad: bool = True,
) -> Tensor:
    """Symmetric InfoNCE of this rank's rows (Radford et al. 2021, arXiv:2103.00020).

    Args:
        images: (batch, dim) unit vectors of this rank.
        texts: (batch, dim) unit vectors, row i belongs to image i.
        logit_scale: scalar, the factor itself and not its logarithm.
        logit_bias: scalar; it changes nothing, but its gradient of 0 is what DDP waits for.
        local_loss: score this rank's rows, or the rows of all ranks.
        gather_with_grad: let gradients reach other ranks' rows.

    Returns:
        scalar; its mean over ranks is the loss of the global batch, as are (with
        `gather_with_grad`) the gradients that DDP averages.
    """
    gather = _gather if gather_with_grad else _gather_constants
    all_images, all_texts = gather(images), gather(texts)  # (world × batch, dim)
    first = _rank() * len(images) if local_loss else 0
    if not local_loss:
        images, texts = all_images, all_texts
    labels = first + torch.arange(len(images), device=images.device)
    by_image = cross_entropy(_logits(images, all_texts, logit_scale, logit_bias), labels)
    by_text = cross_entropy(_logits(texts, all_images, logit_scale, logit_bias), labels)
    return (by_image + by_text) / 2


def siglip_loss(
    images: Tensor, texts: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None
) -> Tensor:
    """Sigmoid loss of every pair of this rank's images (Zhai et al. 2023, arXiv:2303.15343).

    The texts of one rank at a time: memory is (batch, batch), however many ranks there are.

    Args:
        images: (batch, dim) unit vectors of this rank.
        texts: (batch, dim) unit vectors, row i belongs to image i.
        logit_scale: scalar, the factor itself and not its logarithm.
        logit_bias: scalar.

    Returns:
        scalar: summed over texts, mean over images.
    """
    total = torch.zeros((), device=images.device)
    all_texts = _gather(texts)  # (world × batch, dim)
    for rank, block in enumerate(all_texts.chunk(len(all_texts) // len(texts))):
        signs = torch.full((len(images), len(block)), -1.0, device=images.device)
        if rank == _rank():
            signs.fill_diagonal_(1)
        # The logits of a block are computed again in the backward pass and not kept until then.
        total = total + checkpoint(
            _pairs, images, block, logit_scale, logit_bias, signs,
            use_reentrant=False, preserve_rng_state=False,
        )  # fmt: skip
    return total / len(images)


def _pairs(
    images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None, signs: Tensor
) -> Tensor:
    return -logsigmoid(signs * _logits(images, texts, scale, bias)).sum()


def _logits(rows: Tensor, columns: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = scale * rows @ columns.T
    return logits if bias is None else logits + bias


def _gather(rows: Tensor) -> Tensor:
    if not _distributed():
        return rows
    return torch.cat(list(_AllGather.apply(rows)))


def _gather_constants(rows: Tensor) -> Tensor:
    """As `_gather`, but only this rank's own rows have a gradient."""
    if not _distributed():
        return rows
    with torch.no_grad():
        gathered = list(_AllGather.apply(rows))
    gathered[_rank()] = rows
    return torch.cat(gathered)


class _AllGather(torch.autograd.Function):
    """all_gather whose backward brings every rank the sum of the gradients of its own rows."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, rows: Tensor) -> tuple[Tensor, ...]:
        """Rows of every rank, all of one shape."""
        del ctx
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return tuple(gathered)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *gradients: Tensor) -> Tensor:
        """Sum over ranks of what each of them derived for this rank's rows."""
        del ctx
        stacked = torch.stack(gradients)  # (world, batch, dim)
        dist.all_reduce(stacked)
        return stacked[dist.get_rank()]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _rank() -> int:
    return dist.get_rank() if _distributed() else 0
