"""The rows that a segment is made of, chunk by chunk: from embeddings, or from older segments.

A feed knows how many rows will come and which columns they have, so that a segment can be written
while they come; at no time is more than one part or block of rows in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipray.embeddings import KEY_COLUMN, Parts
from clipray.index.manifest import IndexFolder, SegmentRecord
from clipray.index.table import RowTable, row_ids
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

    @property
    def schema(self) -> pa.Schema:
        """Of every chunk's rows; begins with `id` and `key`."""

    def chunks(self) -> Iterator[Chunk]:
        """The rows, in order."""


@dataclass(frozen=True)
class PartPiece:
    """Some rows of one embedding part: those that `keep`, (rows,) bool, selects."""

    part: int
    keep: Mask


@dataclass(frozen=True)
class PartFeed:
    """Rows of embedding parts."""

    parts: Parts
    pieces: tuple[PartPiece, ...]

    @property
    def rows(self) -> int:
        """How many will come."""
        return sum(int(piece.keep.sum()) for piece in self.pieces)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of all parts together."""
        return common_schema(_named(self.parts.schema(piece.part)) for piece in self.pieces)

    def chunks(self) -> Iterator[Chunk]:
        """One a part.

        Raises:
            DamagedError: when a file of a part is missing or changed.
        """
        for piece in self.pieces:
            if not piece.keep.any():
                continue
            table = self.parts.table(piece.part).filter(pa.array(piece.keep))
            keys = table.column(KEY_COLUMN).to_pylist()
            named = table.rename_columns(_column_names(table.column_names))
            named = named.add_column(0, "id", pa.array(row_ids(keys)))
            yield self.parts.vectors(piece.part)[piece.keep], conform(named, self.schema)


@dataclass(frozen=True)
class SegmentPiece:
    """Some rows of one segment: those that `keep`, (rows,) bool, selects."""

    segment: SegmentRecord
    keep: Mask


@dataclass(frozen=True)
class SegmentFeed:
    """Rows of older segments, which stay as they are."""

    root: Path
    pieces: tuple[SegmentPiece, ...]

    @property
    def rows(self) -> int:
        """How many will come."""
        return sum(int(piece.keep.sum()) for piece in self.pieces)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of all segments together."""
        return common_schema(RowTable(self._folder(piece)).schema for piece in self.pieces)

    def chunks(self) -> Iterator[Chunk]:
        """A block of rows at a time.

        Raises:
            DamagedError: when a file of a segment is missing or changed.
        """
        for piece in self.pieces:
            for path, file in IndexFolder(self.root).files(piece.segment):
                file.verify(path)
            vectors = np.load(self._folder(piece) / VECTORS_FILE, mmap_mode="r", allow_pickle=False)
            table = RowTable(self._folder(piece))
            for start in range(0, len(piece.keep), BLOCK_ROWS):
                keep = piece.keep[start : start + BLOCK_ROWS]
                if keep.any():
                    rows = table.block(start, len(keep)).filter(pa.array(keep))
                    yield vectors[start : start + len(keep)][keep], conform(rows, self.schema)

    def _folder(self, piece: SegmentPiece) -> Path:
        return IndexFolder(self.root).segment(piece.segment.id)


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Columns of all; one whose types do not meet is text."""
    types: dict[str, list[pa.DataType]] = {}
    for field in (field for schema in schemas for field in schema):
        types.setdefault(field.name, []).append(field.type)
    return pa.schema([(name, _meet(name, found)) for name, found in types.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the columns of `schema`; what is not there is null."""
    columns = [_as(table, field) for field in schema]
    return pa.table(columns, schema=schema)


def _as(table: pa.Table, field: pa.Field) -> pa.ChunkedArray:
    if field.name not in table.column_names:
        return pa.chunked_array([pa.nulls(len(table), field.type)])
    column = table.column(field.name)
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type, safe=False)
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a list or struct as text
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, field.type)])


def _meet(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def _named(schema: pa.Schema) -> pa.Schema:
    names = _column_names(schema.names)
    renamed = [field.with_name(name) for field, name in zip(schema, names, strict=True)]
    own = next(field for field in renamed if field.name == "key")
    rest = [field for field in renamed if field.name != "key"]
    return pa.schema([pa.field("id", pa.int64()), own, *rest])


def _column_names(names: Sequence[str]) -> list[str]:
    # `id` and `key` are ours; a column of the input with that name keeps its values beside them.
    renamed: list[str] = []
    for name in names:
        free = f"input_{name}" if name in ("id", "key") else name
        while free != name and free in names:
            free = f"input_{free}"
        renamed.append("key" if name == KEY_COLUMN else free)
    return renamed
