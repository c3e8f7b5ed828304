"""What an index of so many rows takes: bytes, and CPU to build and to search it.

Nothing is looked at here, neither machine nor index: it is arithmetic over `costs`.
"""

from dataclasses import dataclass
from math import isqrt

from clipray.capacity import costs
from clipray.capacity.costs import DIM, Family
from clipray.index.codec import LEAST_ROWS, ROWS_PER_LIST
from clipray.index.method import FLAT, GRAPH_LISTS, PQ_DIMS, choose

IDS_BYTES = 16  # a row's id, and its place among the sorted ids
ARROW_BYTES = 12  # the id again, and where the key begins
CODE_BLOCK = 32  # Faiss keeps 4-bit codes of so many rows together; the last block is half empty


@dataclass(frozen=True, slots=True)
class Collection:
    """What is to be indexed.

    Attributes:
        rows: in all shards together.
        dim: length of a vector.
        row_bytes: of key, caption and metadata of one row.
        method: Flat, HNSW32, IVF or auto.
        recall: wanted.
        shards: how many.
    """

    rows: int
    dim: int
    row_bytes: int
    method: str
    recall: float
    shards: int

    @property
    def chosen(self) -> str:
        """The method, with `auto` resolved."""
        if self.method != "auto":
            return self.method
        return choose(self.dim, self.rows, self.shards, None, self.recall).method

    @property
    def family(self) -> Family:
        """Which of the measured kinds the method is of."""
        known: dict[str, Family] = {FLAT: "Flat", "HNSW32": "HNSW32", "IVF": "IVF"}
        return known.get(self.chosen, "PQ")

    @property
    def each(self) -> float:
        """Rows of a shard."""
        return self.rows / self.shards

    @property
    def lists(self) -> int:
        """Of an inverted file; 0 for the other methods."""
        if self.family == "PQ":
            return max(1, isqrt(self.rows))
        return max(1, round(4 * self.rows**0.5)) if self.family == "IVF" else 0

    @property
    def has_graph_of_lists(self) -> bool:
        """Whether the lists themselves are searched through a graph."""
        return self.family == "PQ" and self.lists >= GRAPH_LISTS

    @property
    def code_bytes(self) -> float:
        """Of one row in a list of 4-bit codes."""
        width = next((width for width in PQ_DIMS if self.dim % width == 0), None)
        return self.dim / width / 2 if width else self.dim


@dataclass(frozen=True, slots=True)
class Bytes:
    """Of all shards together.

    Attributes:
        vectors: float16, for exact scores.
        index: of Faiss.
        rows: keys, metadata and ids.
    """

    vectors: float
    index: float
    rows: float

    @classmethod
    def of(cls, wanted: Collection) -> "Bytes":
        """From what was measured of a row."""
        kept = wanted.row_bytes + ARROW_BYTES + IDS_BYTES
        return cls(2 * wanted.dim * wanted.rows, _index_bytes(wanted), kept * wanted.rows)

    @property
    def total(self) -> float:
        """On the disk."""
        return self.vectors + self.index + self.rows


def _index_bytes(wanted: Collection) -> float:
    rows, dim = wanted.rows, wanted.dim
    if wanted.family == "Flat":
        return 0
    if wanted.family == "HNSW32":
        return rows * (4 * dim + costs.LINKS_BYTES)
    centroid = 4 * dim + (costs.LINKS_BYTES if wanted.has_graph_of_lists else 0)
    shared = wanted.lists * centroid * (wanted.shards + 1)  # every shard has them, and the codec
    if wanted.family == "IVF":
        return shared + rows * (4 * dim + 8)
    padding = min(wanted.each, wanted.lists) * wanted.shards * CODE_BLOCK / 2
    return shared + rows * 8 + (rows + padding) * wanted.code_bytes


def build_seconds(wanted: Collection) -> tuple[float, float]:
    """CPU seconds of training, which one task does, and of filling, which all shards share."""
    scale = wanted.dim / DIM
    plain = costs.FLAT_BUILD_US.value / 1e6 * scale * wanted.rows
    if wanted.family == "Flat":
        return 0, plain
    if wanted.family == "HNSW32":
        return 0, costs.GRAPH_BUILD_US.at(wanted.each) / 1e6 * scale * wanted.rows
    product = costs.PRODUCT_NS.value / 1e9 * scale  # one row and one list
    trained = min(wanted.rows, max(LEAST_ROWS, ROWS_PER_LIST * wanted.lists))
    training = costs.KMEANS_ROUNDS * product * trained * wanted.lists
    assign = product * wanted.lists
    if wanted.has_graph_of_lists:
        assign = costs.GRAPH_ASSIGN_US.value / 1e6 * scale
    codes = costs.CODE_BUILD_US.value / 1e6 * scale if wanted.family == "PQ" else 0
    return training, plain + (assign + codes) * wanted.rows


def search_ms(wanted: Collection) -> float:
    """CPU milliseconds of one query in a batch, all shards together."""
    return _ms(wanted, costs.BATCH_MS) * wanted.shards


def shard_ms(wanted: Collection) -> float:
    """Milliseconds that one query alone takes in one shard."""
    return _ms(wanted, costs.SINGLE_MS)


def _ms(wanted: Collection, curves: costs.Curves) -> float:
    """In one shard; a higher recall never costs less, whatever chance had it when measured."""
    kinds = curves[wanted.family]
    asked = ("0.95",) if wanted.recall <= 0.95 else ("0.95", "0.99")
    return max(kinds[recall].at(wanted.each) for recall in asked) * wanted.dim / DIM


def beyond(wanted: Collection) -> list[str]:
    """What is extrapolated, in words."""
    told = []
    curve = costs.BATCH_MS[wanted.family]["0.95"]
    if not curve.reaches(wanted.each):
        told.append(f"search in shards of more than {curve.points[-1][0]:,} rows")
    if wanted.rows > costs.LARGEST_BUILD:
        told.append(f"building more than {costs.LARGEST_BUILD:,} rows")
    if wanted.dim != DIM:
        told.append(f"another dim than {DIM}: time in proportion")
    if wanted.recall > 0.99 and wanted.family != "Flat":
        told.append("a recall above 0.99: as for 0.99")
    return told
