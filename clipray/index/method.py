"""Methods of search: which Faiss index a name stands for, and which one to take.

`auto` chooses for text queries, the hard ones: they lie away from all rows (the modality gap), so
a graph walks long before it finds them, while short codes and exact rescoring of many candidates
keep their recall. Measured tables are in `tests/benchmarks/results/`.
"""

from dataclasses import dataclass
from math import isqrt
from typing import Any

import faiss

from clipray.errors import ConfigError
from clipray.index.manifest import SearchSettings

FLAT = "Flat"
EXACT_UP_TO = 20_000  # rows; an exact scan of so many takes about a millisecond
EXACT_SHARD = 1_000  # rows of a shard; codes of so few cost as much as the rows themselves
GRAPH_LISTS = 16_384  # so many centroids are themselves searched through a graph
NPROBE_SHARE = 1 / 8  # of the lists, where nothing was tuned
PQ_DIMS = (4, 8, 16)  # dimensions that share a 4-bit code: fewer are finer and take more memory
LIST_ENTRY_BYTES = 8  # an id


@dataclass(frozen=True, slots=True)
class Choice:
    """A method, and why it was taken."""

    method: str
    why: str


def choose(dim: int, rows: int, shards: int, memory: int | None, recall: float) -> Choice:
    """Resolve `auto`.

    Args:
        dim: length of a vector.
        rows: of all shards together.
        shards: how many.
        memory: bytes that the index of one shard may take; vectors and rows are mapped from the
            disk and do not count.
        recall: recall@10 wanted for text-like queries.
    """
    each = -(-rows // shards)
    if recall >= 1:
        return Choice(FLAT, "recall 1 needs an exact scan")
    if rows <= EXACT_UP_TO or each <= EXACT_SHARD:
        few = f"{rows} rows" if rows <= EXACT_UP_TO else f"{each} rows a shard"
        return Choice(FLAT, f"{few}: an exact scan is cheap")
    lists = _lists(rows)
    fitting = [width for width in PQ_DIMS if dim % width == 0]
    if not fitting:
        return Choice(f"IVF{lists},SQ8", f"{each} rows a shard, and {dim} dimensions fit no PQ")
    takes = {width: each * (dim // width // 2 + LIST_ENTRY_BYTES) for width in fitting}
    width = next((w for w in fitting if memory is None or takes[w] <= memory), fitting[-1])
    coarse = f"{lists}_HNSW32" if lists >= GRAPH_LISTS else str(lists)
    why = (
        f"{each} rows a shard: 4-bit codes of {width} dimensions and exact rescoring are the "
        f"cheapest for text queries at recall {recall:g}; {takes[width] / 2**20:.0f} MiB a shard"
    )
    if memory is not None and takes[width] > memory:
        why += f", more than the {memory / 2**20:.0f} MiB allowed: use more shards"
    return Choice(f"IVF{coarse},PQ{dim // width}x4fs", why)


def new_index(method: str, dim: int, rows: int) -> Any:
    """An empty Faiss index for inner products.

    Args:
        method: `HNSW32`, `IVF` (which takes its number of lists from `rows`), or any string of
            Faiss's `index_factory`.
        dim: length of a vector.
        rows: rows to come in all shards together.

    Raises:
        ConfigError: when Faiss does not know the method or cannot use it for this `dim`.
    """
    lists = max(1, min(rows, round(4 * rows**0.5)))
    factory = f"IVF{lists},Flat" if method == "IVF" else method
    try:
        index = faiss.index_factory(dim, factory, faiss.METRIC_INNER_PRODUCT)
    except (RuntimeError, AssertionError) as error:
        told = str(error).splitlines()[-1][-200:]
        raise ConfigError(
            f"method '{method}': Faiss cannot make it for {dim} dimensions ({told}); "
            "use auto, Flat, HNSW32, IVF or a Faiss factory string"
        ) from None
    if isinstance(index, faiss.IndexIDMap):
        raise ConfigError(f"method '{method}': leave IDMap out, a segment keeps its ids itself")
    if isinstance(index, faiss.IndexNSG):
        raise ConfigError(f"method '{method}': rows cannot come in pieces; use HNSW32")
    return index


def default_settings(index: Any) -> SearchSettings:
    """Settings for a method that nobody has tuned."""
    nprobe = SearchSettings().nprobe
    inverted = inverted_of(index)
    if inverted is not None:
        nprobe = max(1, round(inverted.nlist * NPROBE_SHARE))
    return SearchSettings(nprobe=nprobe, rescore=1 if _keeps_vectors(index) else 10)


def inverted_of(index: Any) -> Any:
    """The IVF index inside, or None."""
    try:
        return faiss.extract_index_ivf(index)
    except RuntimeError:
        return None


def graph_of(index: Any) -> Any:
    """The HNSW index, be it behind a transform of the vectors, or None."""
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexPreTransform):
        inner = faiss.downcast_index(inner.index)
    return inner if isinstance(inner, faiss.IndexHNSW) else None


def _keeps_vectors(index: Any) -> bool:
    inner = faiss.downcast_index(index)
    if isinstance(inner, faiss.IndexHNSW):
        return isinstance(faiss.downcast_index(inner.storage), faiss.IndexFlat)
    return isinstance(inner, faiss.IndexIVFFlat)


def _lists(rows: int) -> int:
    return max(1, isqrt(rows))
