"""How well pictures and captions find each other, all against all, and which pairs are hardest."""

import numpy as np
import torch
from numpy.typing import NDArray

from clipray.evaluate.pairs import Pairs
from clipray.evaluate.verdict import HardPair
from clipray.training.peers import Peers
from clipray.training.retrieval import ranks, retrieval_metrics

HARDEST = 12

Ranks = NDArray[np.int64]


def retrieval(pairs: Pairs) -> tuple[dict[str, float], Ranks]:
    """open_clip's metrics, and the rank of its own picture for every caption, counted from 0.

    Of several captions of a picture, each looks for the picture, and the picture has found them
    when it has found one.
    """
    images, captions = torch.from_numpy(pairs.images), torch.from_numpy(pairs.captions)
    owners = torch.from_numpy(pairs.owners)
    to_image = ranks(captions, images, owners, Peers())
    each = ranks(images[owners], captions, torch.arange(len(captions)), Peers())
    worst = torch.full((len(images),), len(captions))
    to_text = worst.scatter_reduce(0, owners, each, "amin")
    counts = {"num_samples": float(len(images)), "num_captions": float(len(captions))}
    return retrieval_metrics(to_text, to_image) | counts, to_image.numpy()


def hardest(pairs: Pairs, places: Ranks) -> tuple[HardPair, ...]:
    """The captions that find their own picture last; of equal ranks, the lowest scores."""
    own = np.einsum("ij,ij->i", pairs.captions, pairs.images[pairs.owners])
    order = np.lexsort((own, -places))[:HARDEST]
    return tuple(_hard(pairs, int(row), int(places[row])) for row in order)


def _hard(pairs: Pairs, row: int, place: int) -> HardPair:
    owner = int(pairs.owners[row])
    scores = pairs.images @ pairs.captions[row]  # (n,)
    own = float(scores[owner])
    scores[owner] = -np.inf
    rival = int(scores.argmax())
    return HardPair(
        caption=pairs.texts[row],
        key=pairs.keys[owner],
        rank=place + 1,
        score=own,
        rival=pairs.keys[rival],
        rival_score=float(scores[rival]),
    )
