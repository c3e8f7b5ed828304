"""One immutable segment: vectors, their rows and, unless it is scanned, a Faiss index over them.

Scores never come from Faiss: every candidate is scored again from the stored float16 vectors, in
float64, so a score depends on nothing but query and row: not on the method, the segment or the
shard. Shards, manifests and versions are not known here.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

import faiss
import numpy as np

from clipray.errors import DamagedError
from clipray.index.approximate import Approximate
from clipray.index.exact import ExactScan, Halves, Mask, Ranked, Rows, Vectors
from clipray.index.manifest import SearchSettings
from clipray.index.table import RowTable, mapped_array
from clipray.index.writer import INDEX_FILE, VECTORS_FILE
from clipray.matches import Match, Matches

FILTERS_KEPT = 16  # masks of the filters that came last

# The tables that Faiss would compute serve L2 distances alone.
READ_FLAGS = faiss.IO_FLAG_SKIP_PRECOMPUTE_TABLE

Filter = Mapping[str, Any]


def map_faiss(path: Path) -> Any:
    """Open a Faiss index as `read_faiss` does, mapped where Faiss can do so.

    Nothing may be added to it: that aborts the process.
    """
    return _read(path, READ_FLAGS | faiss.IO_FLAG_MMAP_IFC)


def read_faiss(path: Path) -> Any:
    """Read a Faiss index whose checksum has been verified.

    Raises:
        DamagedError: when Faiss cannot read it.
    """
    return _read(path, READ_FLAGS)


def _read(path: Path, flags: int) -> Any:
    # Besides what is in the file, Faiss asks for tables of at most four times the centroids.
    faiss.set_deserialization_vector_byte_limit(max(16 << 20, 8 * path.stat().st_size))
    try:
        return faiss.read_index(str(path), flags)
    except (RuntimeError, MemoryError) as error:
        raise DamagedError(f"{path}: Faiss cannot read it ({str(error)[-200:]})") from None


@dataclass(frozen=True, slots=True)
class Hit(Match):
    """A row that was found, of which no more is known than where it lies.

    Attributes:
        segment: that holds it.
        row: its number there.
    """

    segment: "Segment | None" = field(default=None, compare=False)
    row: int = field(default=-1, compare=False)


class Segment:
    """An open segment; any number of threads may search it.

    Args:
        folder: with its files.
        dead: (rows,) bool, rows that are deleted.
        settings: how hard to look where the search is approximate.
    """

    def __init__(
        self, folder: Path, dead: Mask | None = None, settings: SearchSettings | None = None
    ) -> None:
        self.table = RowTable(folder)
        mapped = mapped_array(folder / VECTORS_FILE)
        self.vectors: Halves = np.asarray(mapped)
        if len(mapped) != len(self.table) or mapped.dtype != np.float16:
            raise DamagedError(f"{folder}: its files do not have the same rows")
        self._live = None if dead is None else ~dead
        self._count = len(self.table) if self._live is None else int(self._live.sum())
        self._exact = ExactScan(self.vectors, self.table.ids)
        self.approximate = self._read_index(folder / INDEX_FILE, settings or SearchSettings())
        self._masks: dict[str, Mask] = {}
        self._keeping = Lock()

    def __len__(self) -> int:
        return self._count

    def tuned(self, settings: SearchSettings) -> None:
        """Look this hard from now on."""
        if self.approximate is not None:
            self.approximate.settings = settings

    def find(self, row_id: int) -> int | None:
        """The live row with this id, if it is here."""
        row = int(self.table.find(np.array([row_id]))[0])
        return row if row >= 0 and (self._live is None or self._live[row]) else None

    def column(self, name: str) -> Any:
        """Key and value of one column, live row by live row."""
        return self.table.column(name, self._live)

    def live_rows(self) -> Rows:
        """Numbers of the rows that are not deleted."""
        return np.arange(len(self.table)) if self._live is None else np.flatnonzero(self._live)

    def search(
        self, queries: Vectors, k: int, tree: Filter | None = None, *, exact: bool = False
    ) -> list[Matches]:
        """The best `k` rows for each of the (m, dim) float32 unit vectors, as `Hit`s.

        Args:
            queries: unit vectors.
            k: at most this many.
            tree: metadata filter.
            exact: scan all rows, whatever the method.
        """
        allowed = self._allowed(tree)
        count = self._count if tree is None or allowed is None else int(allowed.sum())
        if not count:
            return [Matches()] * len(queries)
        if self.approximate is None or exact:
            ranked = self._exact.search(queries, k, allowed)
        else:
            ranked = self.approximate.search(queries, k, allowed, count)
        return [self._matches(found) for found in ranked]

    def _allowed(self, tree: Filter | None) -> Mask | None:
        if tree is None:
            return self._live
        name = json.dumps(tree, sort_keys=True)
        mask = self._masks.get(name)
        if mask is None:
            mask = self.table.mask(tree)
            mask = mask if self._live is None else mask & self._live
            with self._keeping:
                while len(self._masks) >= FILTERS_KEPT:
                    self._masks.pop(next(iter(self._masks)))
                self._masks[name] = mask
        return mask

    def _matches(self, found: Ranked) -> Matches:
        rows, scores = found
        ids = self.table.ids[rows].tolist()
        places = zip(ids, scores.tolist(), rows.tolist(), strict=True)
        return Matches(tuple(Hit(id=i, score=s, segment=self, row=r) for i, s, r in places))

    def _read_index(self, path: Path, settings: SearchSettings) -> Approximate | None:
        if not path.exists():
            return None
        index = map_faiss(path)
        if index.ntotal != len(self.table):
            raise DamagedError(f"{path}: has {index.ntotal} rows, the segment {len(self.table)}")
        kind = index.d, index.metric_type, index.is_trained
        if kind != (self.vectors.shape[1], faiss.METRIC_INNER_PRODUCT, True):
            raise DamagedError(f"{path}: dimension, metric and training are {kind}")
        return Approximate(index, self._exact, settings)
