"""Scores of pairs and of non-pairs, and where to cut between them."""

import numpy as np
from numpy.typing import NDArray

from clipray.evaluate.pairs import Pairs
from clipray.evaluate.verdict import Scores, Threshold

OTHERS = 16  # non-pairs a caption
BINS = 40
FALSE_MATCHES = 0.01  # share of the non-pairs
DECIMALS = 4

Floats = NDArray[np.floating]


def score_pairs(pairs: Pairs, seed: int) -> Scores | None:
    """Cosines of every caption with its own picture, and with some drawn others.

    Args:
        pairs: pictures and captions.
        seed: of the draw.

    Returns:
        None where there is one picture only.
    """
    count = len(pairs.images)
    if count < 2:
        return None
    steps = np.random.default_rng(seed).integers(1, count, (len(pairs.owners), OTHERS))
    strange = (pairs.owners[:, None] + steps) % count  # (m, others), never the own picture
    own = np.einsum("md,md->m", pairs.captions, pairs.images[pairs.owners])
    columns = (pairs.images[column] for column in strange.T)
    other = np.concatenate([np.einsum("md,md->m", pairs.captions, some) for some in columns])
    return judge(own, other)


def judge(own: Floats, other: Floats) -> Scores:
    """Histograms and thresholds.

    Args:
        own: scores of pairs, at least one.
        other: scores of non-pairs, at least one.
    """
    both = np.concatenate([own, other])
    edges = np.linspace(both.min(), both.max() + 1e-6, BINS + 1)
    return Scores(
        pairs=len(own),
        others=len(other),
        edges=tuple(edges.tolist()),
        pairs_shares=_shares(own, edges),
        others_shares=_shares(other, edges),
        best_f1=best_f1(own, other),
        one_percent=few_false(own, other),
    )


def best_f1(own: Floats, other: Floats) -> Threshold:
    """The score where F1 is largest, if there were as many non-pairs as pairs.

    With t the share of pairs at or above it and f that of non-pairs, precision is t / (t + f),
    recall t, so F1 is 2 t / (1 + t + f).
    """
    candidates = np.unique(own)
    true, false = _passing(own, candidates), _passing(other, candidates)
    best = int(np.argmax(2 * true / (1 + true + false)))
    return _threshold(float(candidates[best]), own, other)


def few_false(own: Floats, other: Floats, share: float = FALSE_MATCHES) -> Threshold:
    """The lowest score that lets at most this share of the non-pairs pass."""
    allowed = int(share * len(other))
    highest = np.sort(np.asarray(other, np.float64))[::-1]
    score = float(highest[allowed]) if allowed < len(other) else -1.0
    step = 10.0**-DECIMALS
    return _threshold((np.floor(score / step) + 1) * step, own, other)


def _threshold(score: float, own: Floats, other: Floats) -> Threshold:
    (pairs,), (others,) = _passing(own, np.array([score])), _passing(other, np.array([score]))
    return Threshold(score=score, pairs=float(pairs), others=float(others))


def _passing(scores: Floats, thresholds: Floats) -> Floats:
    """Share of the scores at or above each threshold."""
    below = np.searchsorted(np.sort(scores), thresholds, side="left")
    shares: Floats = 1 - below / len(scores)
    return shares


def _shares(scores: Floats, edges: Floats) -> tuple[float, ...]:
    counts, _ = np.histogram(scores, edges)
    return tuple((counts / len(scores)).tolist())
