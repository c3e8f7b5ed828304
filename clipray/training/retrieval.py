"""How well images and texts find each other, from their features alone.

Metrics have open_clip's names and values. Models, files and what a query is are not known here.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from clipray.training.peers import Peers
from clipray.training.shares import share_out

RECALL_AT = (1, 5, 10)
CELLS = 1 << 24  # scores held at once: 64 MiB


def ranks(queries: Tensor, candidates: Tensor, targets: Tensor, peers: Peers) -> Tensor:
    """How many candidates stand before the one that a query is meant to find.

    Those stand before it that score higher, and of those that score the same the ones with a lower
    number: a model that gives everything one vector finds nothing. A score that is no number
    stands before all others, unless it is the target's own: then the target stands last.

    Scores are computed in chunks whose size follows from the number of candidates, and the chunks
    are shared by the ranks of the run: the same on 1 or N of them.

    Args:
        queries: (n, dim) float32, the same on all ranks of the run.
        candidates: (m, dim) float32, m ≥ 1.
        targets: (n,) int64, numbers of candidates; n ≥ 1.
        peers: the ranks of the run, which all call this.

    Returns:
        (n,) int64 on the CPU, counted from 0.
    """
    rows = max(1, CELLS // len(candidates))
    held = candidates.to(peers.device)

    def work(starts: Sequence[int]) -> Iterator[Tensor]:
        for start in starts:
            chunk = queries[start : start + rows].to(peers.device)
            aims = targets[start : start + rows].to(peers.device)
            yield _places(chunk @ held.T, aims).cpu()

    return torch.cat(share_out(range(0, len(queries), rows), work, peers))


def retrieval_metrics(image_to_text: Tensor, text_to_image: Tensor) -> dict[str, float]:
    """Mean and median rank, counted from 1 as open_clip does, and recall at 1, 5 and 10.

    Args:
        image_to_text: (n,) int64 ranks of the texts, from `ranks`.
        text_to_image: (n,) int64 ranks of the images.
    """
    return _metrics("image_to_text", image_to_text) | _metrics("text_to_image", text_to_image)


def _places(scores: Tensor, targets: Tensor) -> Tensor:
    own = scores.gather(1, targets[:, None])  # (chunk, 1)
    above = (scores <= own).logical_not_()  # not `>`: that is false of NaN
    earlier = torch.arange(scores.shape[1], device=scores.device) < targets[:, None]
    before = above.logical_or_(earlier.logical_and_(scores == own))
    return before.sum(1).clamp_(max=scores.shape[1] - 1)


def _metrics(name: str, places: Tensor) -> dict[str, float]:
    found = places.numpy()
    means = {
        f"{name}_mean_rank": float(found.mean()) + 1,
        f"{name}_median_rank": float(np.floor(np.median(found))) + 1,
    }
    return means | {f"{name}_R@{k}": float((found < k).mean()) for k in RECALL_AT}
