"""Leaving near-duplicates out of what was found: of matches that look alike the best one stays.

The search in process and the service both go through here, so that they leave out the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clipray.matches import Match, Matches

BLOCK = 128
ROUNDING = 1e-6  # equal vectors have a cosine a little below 1
MANY = 1_000
MOST = 5_000

Vectors = NDArray[np.float32]


def asks(k: int) -> tuple[int, ...]:
    """How many matches to ask for so that `k` are left; a later number where too few were.

    No number is below `k`, and none grows beyond it for a large `k`, of which some may be missing.
    """
    return tuple(dict.fromkeys((max(k, min(3 * k + 16, MANY)), max(k, min(12 * k + 64, MOST)))))


def without_duplicates(matches: Matches, similarity: float, k: int) -> Matches:
    """The best `k` matches of which no two have this cosine or more.

    Going from the best to the worst, a match goes that is alike one that stays. What is alike only
    one that goes stays.

    Args:
        matches: best first, each with its vector.
        similarity: the cosine from which on two matches are alike.
        k: at most this many are left.
    """
    if not matches:
        return matches
    held = np.empty((min(k, len(matches)), len(matches.items[0].vector)), np.float32)
    kept: list[Match] = []
    for start in range(0, len(matches), BLOCK):
        block = matches.items[start : start + BLOCK]
        units = _units(block)
        fresh = _unlike(units, held[: len(kept)], similarity - ROUNDING)[: k - len(kept)]
        held[len(kept) : len(kept) + len(fresh)] = units[fresh]
        kept += [block[place] for place in fresh]
        if len(kept) == k:
            break
    return Matches(tuple(kept))


def _unlike(block: Vectors, held: Vectors, limit: float) -> list[int]:
    """Rows of a (b, dim) block that are alike none of the (h, dim) held and none before them."""
    free = np.all(block @ held.T < limit, axis=1)  # (b,)
    alike = block @ block.T >= limit  # (b, b)
    for place in range(len(block)):
        if free[place]:
            free[place + 1 :] &= ~alike[place, place + 1 :]
    return np.flatnonzero(free).tolist()


def _units(matches: Sequence[Match]) -> Vectors:
    """(b, dim) float32; the float16 vectors of an index are a thousandth off unit length."""
    vectors: Vectors = np.stack([match.vector for match in matches])
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)
