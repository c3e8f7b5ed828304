"""The rows that a segment is made of, chunk by chunk: from embeddings, or from older segments.

A feed knows how many rows will come and which columns they have, so that a segment can be written
while they come; at no time is more than one part or block of rows in memory.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipray.embeddings import KEY_COLUMN, Parts
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
    """Rows of embedding parts."""

    parts: Parts
    pieces: tuple[PartPiece, ...]

    @property
    def rows(self) -> int:
        """How many will come."""
        return sum(int(piece.keep.sum()) for piece in self.pieces)

    def schema(self, folder: IndexFolder) -> pa.Schema:
        """Of all parts together."""
        del folder
        return common_schema(_named(self.parts.schema(piece.part)) for piece in self.pieces)

    def chunks(self, folder: IndexFolder) -> Iterator[Chunk]:
        """One a part.

        Raises:
            DamagedError: when a file of a part is missing or changed.
        """
        schema = self.schema(folder)
        for piece in self.pieces:
            if not piece.keep.any():
                continue
            table = self.parts.table(piece.part).filter(pa.array(piece.keep))
            keys = table.column(KEY_COLUMN).to_pylist()
            named = table.rename_columns(_column_names(table.column_names))
            named = named.add_column(0, "id", pa.array(row_ids(keys)))
            yield self.parts.vectors(piece.part)[piece.keep], conform(named, schema)


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
        return column.cast(field.type, safe=pa.types.is_string(field.type))  # text is checked
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a list, struct or bytes
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, field.type)])


def _meet(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    kinds = set(types) - {pa.null()}
    if len(kinds) > 1 and any(kind == pa.uint64() or pa.types.is_decimal(kind) for kind in kinds):
        return pa.string()  # Arrow would have them wrap around, or fail
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
