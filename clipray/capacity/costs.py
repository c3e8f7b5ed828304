"""What things cost, as measured: every constant with its date and its table.

All was measured on 2 cores of an AMD EPYC (avx512_bf16), without a GPU, over vectors of 512
dimensions. The tables are in `tests/benchmarks/results/`; a test looks every figure up there.
"""

import math
from dataclasses import dataclass
from typing import Literal

DATE = "2026-11-26"
DIM = 512  # of the vectors that were measured

Family = Literal["Flat", "HNSW32", "IVF", "PQ"]

_ROWS = "capacity_x86_64_2026-11-26.md"
_SERVING = "serving_x86_64_2026-11-26.md"
_EMBEDDING = "embedding_x86_64_2026-11-25.md"


@dataclass(frozen=True, slots=True)
class Measured:
    """One figure.

    Attributes:
        value: in the unit that its name ends with.
        source: the table that has it.
    """

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure that grows with the rows: straight lines between logarithms.

    Attributes:
        points: (rows, value), ascending.
        source: the table that has them.
    """

    points: tuple[tuple[int, float], ...]
    source: str = _ROWS

    def at(self, rows: float) -> float:
        """The value; beyond the points as they go on from the first to the last."""
        first, last = self.points[0], self.points[-1]
        pairs = list(zip(self.points, self.points[1:], strict=False))
        inside = next((pair for pair in pairs if pair[0][0] <= rows <= pair[1][0]), (first, last))
        (low, below), (high, above) = inside
        anchor = last if rows > last[0] else (low, below)
        slope = math.log(above / below) / math.log(high / low)
        return float(anchor[1] * (rows / anchor[0]) ** slope)

    def reaches(self, rows: float) -> bool:
        """Whether so many rows were measured."""
        return rows <= self.points[-1][0]


# Embedding, ViT-B-32.
EMBED_MS = Measured(49.17, _EMBEDDING)  # CPU, an image, bf16
TEXT_MS = Measured(12.26, _SERVING)  # CPU, a text in a batch, fp32

# Serving over HTTP, 32 queries at once, beside what the search itself costs.
ONE_GROUP_MS = Measured(1.97, _SERVING)  # CPU, a query by vector, the search included
FOUR_GROUPS_MS = Measured(2.49, _SERVING)
GROUP_MB = Measured(242, _SERVING)  # memory of a process with shards, beside the index
ENCODER_MB = Measured(1706, _SERVING)
INGRESS_MB = Measured(276, _SERVING)

# An index: bytes and CPU of a row.
LINKS_BYTES = Measured(272, _ROWS)  # of HNSW32, beside the vector
GROUPS = 4  # so many were served
LARGEST_BUILD = 800_000
