"""The rows of a segment: ids, keys and metadata, mapped from the disk.

Row i of the table belongs to vector i. Opening reads only what names the columns; a row is found
by its id with a binary search.
"""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
from numpy.typing import NDArray

from clipray.errors import DamagedError
from clipray.masks import row_mask

ROWS_FILE = "rows.arrow"
IDS_FILE = "ids.npy"

OWN_COLUMNS = ("id", "key")

# What numpy raises for a header that was changed.
UNREADABLE = (OSError, EOFError, ValueError, TypeError, SyntaxError, MemoryError, TokenError)

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


def row_id(key: str) -> int:
    """63-bit id of a key: the same in every build, shard and version."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


def row_ids(keys: Iterable[str]) -> Rows:
    """Ids of many keys, int64."""
    return np.fromiter((row_id(key) for key in keys), np.int64)


def read_columns(folder: Path) -> list[str]:
    """Names of the metadata columns of a segment on disk.

    Raises:
        DamagedError: when the file cannot be read.
    """
    with _opened(folder / ROWS_FILE) as rows:
        return [name for name in rows.schema.names if name not in OWN_COLUMNS]


def mapped_array(path: Path) -> NDArray[Any]:
    """An array that stays on the disk.

    Raises:
        DamagedError: when the file is missing or holds none.
    """
    try:
        found: np.memmap[Any, Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except UNREADABLE as error:
        raise DamagedError(f"{path}: holds no array ({error})") from None
    told = found.offset + found.nbytes
    if told != path.stat().st_size or not found.flags.c_contiguous:
        raise DamagedError(f"{path}: its header does not fit its size")
    return found


class RowTable:
    """The rows of one segment.

    Attributes:
        ids: (rows,) int64, mapped.

    Raises:
        DamagedError: files that cannot be read, or do not belong together.
    """

    def __init__(self, folder: Path) -> None:
        both = mapped_array(folder / IDS_FILE)
        if both.ndim != 2 or len(both) != 2 or both.dtype != np.int64:
            raise DamagedError(f"{folder / IDS_FILE}: has shape {both.shape} of {both.dtype}")
        # Plain arrays over the same mapping: indexing a memmap costs ten times as much.
        self.ids, self._order = (np.asarray(row) for row in both)
        with _opened(folder / ROWS_FILE) as rows:
            self._rows: pa.Table = rows.read_all()
            named = tuple(self._rows.column_names[:2])
        if named != OWN_COLUMNS:
            raise DamagedError(f"{folder / ROWS_FILE}: begins with {named}, not {OWN_COLUMNS}")
        if self._rows.num_rows != len(self.ids):
            raise DamagedError(f"{folder}: {IDS_FILE} and {ROWS_FILE} have not the same rows")
        self._batches = [batch for batch in self._rows.to_batches() if batch.num_rows]
        self._ends = np.cumsum([batch.num_rows for batch in self._batches]).tolist()
        self._cells: dict[str, list[pa.Array]] = {}
        # Arrow looks through all names for one, and one sample can bring 20,000 of them.
        self._places = {name: place for place, name in enumerate(self._rows.column_names)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def schema(self) -> pa.Schema:
        """Names and types of all columns."""
        return self._rows.schema

    @property
    def columns(self) -> list[str]:
        """Names of the metadata columns."""
        return [name for name in self._rows.column_names if name not in OWN_COLUMNS]

    def column(self, name: str, allowed: Mask | None = None) -> Iterator[tuple[str, Any]]:
        """Key and value of one column, row by row; nothing where there is no such column."""
        if name in self._rows.column_names:
            table = self._rows.select(["key", name])
            table = table if allowed is None else table.filter(pa.array(allowed))
            for batch in table.to_batches():
                yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)

    def find(self, ids: Rows) -> Rows:
        """The row of each id, -1 where there is none."""
        if not len(self.ids):
            return np.full(len(ids), -1, np.int64)
        places = np.searchsorted(self.ids, ids, sorter=self._order)
        rows = self._order[np.minimum(places, len(self.ids) - 1)]
        return np.where(self.ids[rows] == ids, rows, -1)

    def row(self, row: int, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Key and columns of a row, all by default; those that are not here are left out."""
        number = bisect_right(self._ends, row)
        place = row - (self._ends[number] - self._batches[number].num_rows)
        wanted = self._rows.column_names if columns is None else ("key", *columns)
        known = ((name, self._column(name)) for name in wanted)
        return {name: cells[number][place].as_py() for name, cells in known if cells}

    def _column(self, name: str) -> list[pa.Array]:
        cells = self._cells.get(name)
        if cells is None:  # a batch wraps a column anew each time that it is asked
            place = self._places.get(name)
            cells = [] if place is None else [batch.column(place) for batch in self._batches]
            self._cells[name] = cells
        return cells

    def mask(self, tree: Mapping[str, Any]) -> Mask:
        """(rows,) bool: which rows pass a metadata filter."""
        return np.asarray(row_mask(tree, self._rows))

    def take(self, rows: Rows) -> pa.Table:
        """Some rows, given by their numbers in ascending order."""
        if not len(rows):
            return self._rows.slice(0, 0)
        first, last = int(rows[0]), int(rows[-1])
        return self._rows.slice(first, last - first + 1).take(pa.array(rows - first))


@contextmanager
def _opened(path: Path) -> Iterator[pa.ipc.RecordBatchFileReader]:
    try:
        with pa.memory_map(str(path)) as source:
            yield pa.ipc.open_file(source)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DamagedError(f"{path}: cannot be read as Arrow ({error})") from None
