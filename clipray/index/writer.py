"""Writing a segment piece by piece, so that only its Faiss index is in memory as a whole."""

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from clipray import storage
from clipray.errors import DamagedError
from clipray.index.table import IDS_FILE, ROWS_FILE
from clipray.manifest import FileRecord

INDEX_FILE = "index.faiss"
VECTORS_FILE = "vectors.npy"

Halves = NDArray[np.float16]


class SegmentWriter:
    """Writes into a staged folder, which flushes and publishes it.

    Args:
        folder: where to write.
        rows: how many there will be.
        dim: length of a vector.
        schema: of the rows; begins with `id` and `key`.
        index: an empty, trained Faiss index to fill; None for an exact scan.
    """

    def __init__(
        self, folder: Path, rows: int, dim: int, schema: pa.Schema, index: Any | None
    ) -> None:
        self._folder, self._rows, self._index = folder, rows, index
        self._ids: list[NDArray[np.int64]] = []
        self._open = ExitStack()
        self._vectors = self._open.enter_context(storage.hashed(folder / VECTORS_FILE))
        self._table = self._open.enter_context(storage.hashed(folder / ROWS_FILE))
        self._batches = self._open.enter_context(
            pa.ipc.new_file(pa.PythonFile(self._table, mode="w"), schema)
        )
        header = {"descr": "<f2", "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(self._vectors, header)
        self.files: dict[str, FileRecord] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        if error is None:
            self._finish()

    def add(self, vectors: Halves, rows: pa.Table) -> None:
        """Append unit vectors, (n, dim) float16, and their rows."""
        if self._index is not None:
            self._index.add(np.ascontiguousarray(vectors, dtype=np.float32))
        self._vectors.write(np.ascontiguousarray(vectors, dtype="<f2").data)
        self._ids.append(rows.column("id").to_numpy())
        for batch in rows.combine_chunks().to_batches():
            self._batches.write_batch(batch)

    def _finish(self) -> None:
        ids = np.concatenate(self._ids) if self._ids else np.empty(0, np.int64)
        if len(ids) != self._rows:
            raise DamagedError(f"{self._folder}: {len(ids)} rows came, {self._rows} were planned")
        with storage.hashed(self._folder / IDS_FILE) as sink:
            np.save(sink, np.stack([ids, np.argsort(ids, kind="stable")]))
        sinks = {VECTORS_FILE: self._vectors, ROWS_FILE: self._table, IDS_FILE: sink}
        if self._index is not None:
            with storage.hashed(self._folder / INDEX_FILE) as sinks[INDEX_FILE]:
                write_faiss(self._index, sinks[INDEX_FILE])
        self.files = {name: FileRecord.of((s.size, s.sha256)) for name, s in sinks.items()}


def write_faiss(index: Any, sink: storage.Sink) -> None:
    """Write a Faiss index through Python, which sees a full disk where Faiss itself does not."""
    faiss.write_index(index, faiss.PyCallbackIOWriter(sink.write, 1 << 20))
