"""One immutable Faiss segment: vectors, their rows and a Faiss index over them.

Scores never come from Faiss: every candidate is scored again from the stored float16 vectors, in
float64, so a score depends on nothing but query and row: not on the method, the segment or the
shard. Shards, manifests and versions are not known here.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from clipray import storage
from clipray.errors import ConfigError, DamagedError
from clipray.manifest import FileRecord
from clipray.matches import Match, Matches

INDEX_FILE = "index.faiss"
ROWS_FILE = "rows.arrow"
VECTORS_FILE = "vectors.npy"

_OWN = ("id", "key")

EF_SEARCH = 64
NPROBE_SHARE = 1 / 8  # of the lists of an IVF index
RESCORE_FACTOR = 2  # candidates per wanted match from an approximate index

Vectors = NDArray[np.float32]
Halves = NDArray[np.float16]


def new_index(method: str, dim: int, rows: int) -> Any:
    """An empty Faiss index for inner products.

    Args:
        method: `Flat`, `HNSW32`, `IVF` (which takes its number of lists from `rows`), or any
            string of Faiss's `index_factory`.
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
    return index


def write_segment(
    folder: Path, index: Any, vectors: Halves, rows: pa.Table
) -> dict[str, FileRecord]:
    """Fill `index` with unit vectors, (n, dim) float16, and write the segment to `folder`."""
    index.add(np.ascontiguousarray(vectors, dtype=np.float32))
    return {
        INDEX_FILE: write_faiss(folder / INDEX_FILE, index),
        ROWS_FILE: _write_rows(folder / ROWS_FILE, rows),
        VECTORS_FILE: _write_array(folder / VECTORS_FILE, vectors),
    }


def write_faiss(path: Path, index: Any) -> FileRecord:
    """Write a Faiss index through Python, which sees a full disk where Faiss itself does not."""

    def fill(sink: storage.Sink) -> None:
        faiss.write_index(index, faiss.PyCallbackIOWriter(sink.write, 1 << 20))

    return FileRecord.of(storage.stream_file(path, fill))


def read_faiss(path: Path) -> Any:
    """Read a Faiss index whose checksum has been verified; memory is bounded by its size."""
    faiss.set_deserialization_vector_byte_limit(max(1 << 20, 2 * path.stat().st_size))
    try:
        return faiss.read_index(str(path))
    except RuntimeError as error:
        raise DamagedError(f"{path}: Faiss cannot read it ({str(error)[-200:]})") from None


def read_columns(folder: Path) -> list[str]:
    """Names of the metadata columns of a segment on disk."""
    with pa.memory_map(str(folder / ROWS_FILE)) as source:
        return [name for name in pa.ipc.open_file(source).schema.names if name not in _OWN]


class Segment:
    """An open segment; any number of threads may search it."""

    def __init__(self, folder: Path) -> None:
        self.vectors: Halves = np.load(folder / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
        self._index = read_faiss(folder / INDEX_FILE)
        self._parameters = _search_parameters(self._index)
        self._exact = isinstance(faiss.downcast_index(self._index), faiss.IndexFlat)
        with pa.memory_map(str(folder / ROWS_FILE)) as source:
            self._rows: pa.Table = pa.ipc.open_file(source).read_all()
        self.ids: NDArray[np.int64] = self._rows.column("id").to_numpy()
        if not self._index.ntotal == len(self.vectors) == len(self.ids):
            raise DamagedError(f"{folder}: its three files do not have the same number of rows")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return [name for name in self._rows.column_names if name not in _OWN]

    def column(self, name: str) -> Iterator[tuple[str, Any]]:
        """Key and value of one column, row by row; nothing where there is no such column."""
        if name in self._rows.column_names:
            keys, values = self._rows.column("key"), self._rows.column(name)
            yield from zip(keys.to_pylist(), values.to_pylist(), strict=True)

    def find(self, row_id: int) -> Vectors | None:
        """The (dim,) float32 vector with this id, if it is here."""
        rows = np.flatnonzero(self.ids == row_id)
        return self.vectors[rows[0]].astype(np.float32) if len(rows) else None

    def row(self, row_id: int) -> dict[str, Any] | None:
        """Key and all columns of the row with this id, if it is here."""
        rows = np.flatnonzero(self.ids == row_id)
        return self._rows.slice(int(rows[0]), 1).to_pylist()[0] if len(rows) else None

    def search(
        self, queries: Vectors, k: int, threshold: float | None, columns: Sequence[str]
    ) -> list[Matches]:
        """The best `k` rows for each of the (m, dim) float32 unit vectors."""
        if not len(self):
            return [Matches()] * len(queries)
        ranked = self._rank_exactly(queries, k) if self._exact else self._rank(queries, k)
        return [self._matches(rows[:k], scores[:k], threshold, columns) for rows, scores in ranked]

    def _rank(self, queries: Vectors, k: int) -> list[tuple[NDArray[Any], Vectors]]:
        wanted = min(len(self), k * RESCORE_FACTOR)
        parameters = _at_least(self._parameters, wanted)
        _, candidates = self._index.search(queries, wanted, params=parameters)
        pairs = zip(queries, candidates, strict=True)
        return [self._rescore(query, rows[rows >= 0]) for query, rows in pairs]

    def _rank_exactly(self, queries: Vectors, k: int) -> list[tuple[NDArray[Any], Vectors]]:
        # Faiss adds in float32 and in its own order, so rows that close to the k-th place may
        # stand on the wrong side of it: widen until the last candidate is clearly below.
        slack = queries.shape[1] * 2.0**-23
        found: list[tuple[NDArray[Any], Vectors]] = []
        for query in queries:
            wanted = min(len(self), k + 16)
            while True:
                coarse, rows = self._index.search(query[None], wanted)
                if wanted == len(self) or coarse[0, k - 1] - coarse[0, -1] > slack:
                    break
                wanted = min(len(self), 4 * wanted)
            found.append(self._rescore(query, rows[0]))
        return found

    def _rescore(self, query: Vectors, rows: NDArray[Any]) -> tuple[NDArray[Any], Vectors]:
        stored = self.vectors[rows].astype(np.float64)  # (candidates, dim)
        scores = (stored @ query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((self.ids[rows], -scores))
        return rows[order], scores[order]

    def _matches(
        self, rows: NDArray[Any], scores: Vectors, threshold: float | None, columns: Sequence[str]
    ) -> Matches:
        if threshold is not None:
            kept = int(np.count_nonzero(scores.astype(np.float64) >= threshold))
            rows, scores = rows[:kept], scores[:kept]  # sorted, so the rest is below
        wanted = [name for name in columns if name in self._rows.column_names]
        table = self._rows.select(["id", "key", *wanted]).take(pa.array(rows))
        pairs = zip(table.to_pylist(), scores, strict=True)
        return Matches(tuple(_match(row, float(score)) for row, score in pairs))


def _match(row: dict[str, Any], score: float) -> Match:
    return Match(id=row.pop("id"), key=row.pop("key"), score=score, columns=row)


def _search_parameters(index: Any) -> Any:
    try:
        inverted = faiss.extract_index_ivf(index)
    except RuntimeError:
        inverted = None
    if inverted is not None:  # set in place: wrappers such as RFlat do not hand parameters down
        inverted.nprobe = max(1, round(inverted.nlist * NPROBE_SHARE))
    if isinstance(faiss.downcast_index(index), faiss.IndexHNSW):
        return faiss.SearchParametersHNSW(efSearch=EF_SEARCH)
    return None


def _at_least(parameters: Any, wanted: int) -> Any:
    if isinstance(parameters, faiss.SearchParametersHNSW) and wanted > parameters.efSearch:
        return faiss.SearchParametersHNSW(efSearch=wanted)
    return parameters


def _write_rows(path: Path, rows: pa.Table) -> FileRecord:
    def fill(sink: storage.Sink) -> None:
        with pa.ipc.new_file(pa.PythonFile(sink, mode="w"), rows.schema) as writer:
            for batch in rows.combine_chunks().to_batches():
                writer.write_batch(batch)

    return FileRecord.of(storage.stream_file(path, fill))


def _write_array(path: Path, array: Halves) -> FileRecord:
    return FileRecord.of(storage.stream_file(path, lambda sink: np.save(sink, array)))
