"""What things cost, as measured: every constant with its date and its table.

All was measured on 2 cores of an AMD EPYC (avx512_bf16), without a GPU, over vectors of 512
dimensions. The tables are in `tests/benchmarks/results/`; a test looks every figure up there.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import log
from typing import Literal

DATE = "2026-11-26"
DIM = 512  # of the vectors that were measured

LEAST_GROWTH = 0.5  # power of the rows: the lists of an inverted file are their square root

Family = Literal["Flat", "HNSW32", "IVF", "PQ"]
Point = tuple[float, float]

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
class Fitted:
    """A constant that the measured times follow; a test compares them with it.

    Attributes:
        value: in the unit that its name ends with.
        source: the table with the times.
    """

    value: float
    source: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure that grows with the rows: straight lines between logarithms.

    What was measured beside other work may fall by chance where there are more rows; the figure
    does not.

    Attributes:
        points: (rows, value), ascending by rows.
    """

    points: tuple[tuple[int, float], ...]

    def at(self, rows: float) -> float:
        """The value; outside the points with the growth from the first to the last."""
        rising = self._rising()
        first, last = rising[0], rising[-1]
        if rows <= first[0]:
            return _along(first, self._growth(first, last), rows)
        for low, high in pairwise(rising):
            if rows <= high[0]:
                return _along(low, _slope(low, high), rows)
        return _along(last, self._growth(first, last), rows)

    def reaches(self, rows: float) -> bool:
        """Whether so many rows were measured."""
        return rows <= self.points[-1][0]

    def _growth(self, first: Point, last: Point) -> float:
        return max(LEAST_GROWTH, _slope(first, last))

    def _rising(self) -> list[Point]:
        tops = accumulate((value for _, value in self.points), max)
        return [(rows, top) for (rows, _), top in zip(self.points, tops, strict=True)]


def _slope(low: Point, high: Point) -> float:
    return log(high[1] / low[1]) / log(high[0] / low[0])


def _along(start: Point, slope: float, rows: float) -> float:
    return float(start[1] * (rows / start[0]) ** slope)


# Embedding, ViT-B-32.
EMBED_MS = Measured(49.17, _EMBEDDING)  # CPU, an image, bf16
TEXT_MS = Measured(12.26, _SERVING)  # CPU, a text in a batch, fp32

# Serving over HTTP, 32 queries at once, beside what the search itself costs.
ONE_GROUP_MS = Measured(1.97, _SERVING)  # CPU, a query by vector, the search included
FOUR_GROUPS_MS = Measured(2.49, _SERVING)
GROUP_MB = Measured(242, _SERVING)  # memory of a process with shards, beside the index
ENCODER_MB = Measured(1706, _SERVING)
INGRESS_MB = Measured(276, _SERVING)

# An index: bytes of a row, and CPU.
HNSW_BYTES = Measured(2320.1, _ROWS)  # float32 vector and links
LINKS_BYTES = HNSW_BYTES.value - 4 * DIM
TASK_MB = Measured(356, _ROWS)  # memory of a process that builds, beside its index
APPEND_S = Measured(0.019, _ROWS)  # CPU, 1,000 rows
FLAT_BUILD_US = Fitted(8, _ROWS)  # reading, writing and checking one row
PRODUCT_NS = Fitted(10.5, _ROWS)  # comparing one row with one list
KMEANS_ROUNDS = 10  # Faiss's own
CODE_BUILD_US = Fitted(21, _ROWS)  # making the 4-bit code of one row
GRAPH_ASSIGN_US = Measured(219.3, _ROWS)  # finding the list of one row through a graph
GROUPS = 4  # so many were served
LARGEST_BUILD = 400_000  # rows
GRAPH_BUILD_US = Curve(((25_000, 120.0), (50_000, 161.7), (100_000, 237.1), (200_000, 325.2)))

Curves = Mapping[Family, Mapping[str, Curve]]

# CPU milliseconds of one query of 32 at once, by recall and by rows of a shard.
BATCH_MS: Curves = {
    "Flat": {
        "0.95": Curve(((10_000, 0.625), (20_000, 0.956), (50_000, 2.228))),
        "0.99": Curve(((10_000, 0.591), (20_000, 0.984), (50_000, 2.225))),
    },
    "HNSW32": {
        "0.95": Curve(((25_000, 0.191), (50_000, 0.278), (100_000, 0.938), (200_000, 1.606))),
        "0.99": Curve(((25_000, 0.231), (50_000, 0.419), (100_000, 1.772), (200_000, 5.131))),
    },
    "IVF": {
        "0.95": Curve(((50_000, 0.278), (100_000, 0.306), (200_000, 0.169))),
        "0.99": Curve(((50_000, 0.128), (100_000, 0.156), (200_000, 0.212))),
    },
    "PQ": {
        "0.95": Curve(((50_000, 0.122), (100_000, 0.128), (200_000, 0.188), (400_000, 0.316))),
        "0.99": Curve(((50_000, 0.106), (100_000, 0.147), (200_000, 0.306), (400_000, 0.725))),
    },
}
# The same, one query at a time.
SINGLE_MS: Curves = {
    "Flat": {
        "0.95": Curve(((10_000, 0.597), (20_000, 0.981), (50_000, 2.259))),
        "0.99": Curve(((10_000, 0.572), (20_000, 0.819), (50_000, 2.212))),
    },
    "HNSW32": {
        "0.95": Curve(((25_000, 0.266), (50_000, 0.456), (100_000, 1.528), (200_000, 1.688))),
        "0.99": Curve(((25_000, 0.322), (50_000, 0.625), (100_000, 2.284), (200_000, 5.328))),
    },
    "IVF": {
        "0.95": Curve(((50_000, 0.222), (100_000, 0.212), (200_000, 0.381))),
        "0.99": Curve(((50_000, 0.203), (100_000, 0.422), (200_000, 0.588))),
    },
    "PQ": {
        "0.95": Curve(((50_000, 0.191), (100_000, 0.222), (200_000, 0.291), (400_000, 0.553))),
        "0.99": Curve(((50_000, 0.172), (100_000, 0.256), (200_000, 0.844), (400_000, 1.913))),
    },
}
