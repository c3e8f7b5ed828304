"""The contrastive loss of CLIP over the global batch.

Every rank scores its own rows against the columns of all ranks. Gathering keeps the gradient:
of open_clip's four ways only that one is right and cheap, with `local_loss`. What the features
come from is not known here.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.functional import cross_entropy


def contrastive_loss(images: Tensor, texts: Tensor, logit_scale: Tensor) -> Tensor:
    """Symmetric InfoNCE of this rank's rows (Radford et al. 2021, arXiv:2103.00020).

    Args:
        images: (batch, dim) unit vectors of this rank.
        texts: (batch, dim) unit vectors, row i belongs to image i.
        logit_scale: scalar, the factor itself and not its logarithm.

    Returns:
        scalar; its mean over ranks is the loss of the global batch, as are the gradients that
        DDP averages.
    """
    all_images, all_texts = _gather(images), _gather(texts)  # (world × batch, dim)
    labels = torch.arange(len(images), device=images.device) + _rank() * len(images)
    by_image = cross_entropy(logit_scale * images @ all_texts.T, labels)
    by_text = cross_entropy(logit_scale * texts @ all_images.T, labels)
    return (by_image + by_text) / 2


def _gather(rows: Tensor) -> Tensor:
    if not _distributed():
        return rows
    return torch.cat(list(_AllGather.apply(rows)))


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
