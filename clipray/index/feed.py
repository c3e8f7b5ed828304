"""The rows that a segment is made of, chunk by chunk: from embeddings, or from older segments.

A feed knows how many rows will come and which columns they have, so that a segment can be written
while they come; at no time is more than one part or block of rows in memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipray.embeddings import KEY_COLUMN, Parts
from clipray.index.columns import common_schema, conform, index_names
from clipray.index.deletions import dead_rows
from clipray.index.manifest import IndexFolder, SegmentRecord
from clipray.index.table import RowTable, mapped_array, row_ids
from clipray.index.writer import VECTORS_FILE

BLOCK_ROWS = 65_536

Halves = NDArray[np.float16]
Mask = NDArray[np.bool_]
Chunk = tuple[Halves, pa.Table]  # (n, dim) unit vectors, and their rows


class Feed(Protocol):
    """Rows for one segment."""

    @property
    def rows(self) -> int:
        """How many will come."""

    def schema(self, folder: IndexFolder) -> pa.Schema:
        """Of every chunk's rows; begins with `id` and `key`."""

    def chunks(self, folder: IndexFolder) -> Iterator[Chunk]:
        """The rows, in order; `folder` is the index where it is read."""


@dataclass(frozen=True)
class PartPiece:
    """Some rows of one embedding part: those that `keep`, (rows,) bool, selects."""

    part: int
    keep: Mask


@dataclass(frozen=True)
class PartFeed:
    """Rows of embedding parts.

    Attributes:
        columns: of all parts of the job, so that a column is of one type in all its segments.
    """

    parts: Parts
    pieces: tuple[PartPiece, ...]
    columns: pa.Schema

    @property
    def rows(self) -> int:
        """How many will come."""
        return sum(int(piece.keep.sum()) for piece in self.pieces)

    def schema(self, folder: IndexFolder) -> pa.Schema:
        """Of all parts together."""
        del folder
        return self.columns

    def chunks(self, folder: IndexFolder) -> Iterator[Chunk]:
        """One a part.

        Raises:
            DamagedError: when a file of a part is missing or changed.
        """
        for piece in self.pieces:
            if not piece.keep.any():
                continue
            table = self.parts.table(piece.part).filter(pa.array(piece.keep))
            keys = table.column(KEY_COLUMN).to_pylist()
            named = table.rename_columns(index_names(table.column_names))
            named = named.add_column(0, "id", pa.array(row_ids(keys)))
            yield self.parts.vectors(piece.part)[piece.keep], conform(named, self.columns)


@dataclass(frozen=True)
class SegmentPiece:
    """The live rows `first` to `last` of one segment, as they were in a version."""

    segment: SegmentRecord
    first: int
    last: int

    @property
    def rows(self) -> int:
        """How many."""
        return self.last - self.first


@dataclass(frozen=True)
class SegmentFeed:
    """Rows of older segments, which stay as they are."""

    pieces: tuple[SegmentPiece, ...]

    @property
    def rows(self) -> int:
        """How many will come."""
        return sum(piece.rows for piece in self.pieces)

    def schema(self, folder: IndexFolder) -> pa.Schema:
        """Of all segments together."""
        tables = (RowTable(folder.segment(piece.segment.id)) for piece in self.pieces)
        return common_schema(table.schema for table in tables)

    def chunks(self, folder: IndexFolder) -> Iterator[Chunk]:
        """A block of rows at a time.

        Raises:
            DamagedError: when a file of a segment is missing or changed.
        """
        schema = self.schema(folder)
        for piece in self.pieces:
            for path, file in folder.files(piece.segment):
                file.verify(path)
            home = folder.segment(piece.segment.id)
            vectors = mapped_array(home / VECTORS_FILE)
            table = RowTable(home)
            live = np.flatnonzero(~dead_rows(folder, piece.segment))[piece.first : piece.last]
            for start in range(0, len(live), BLOCK_ROWS):
                rows = live[start : start + BLOCK_ROWS]
                yield np.asarray(vectors[rows]), conform(table.take(rows), schema)
