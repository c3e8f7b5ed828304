"""Deleted rows: a bitmap for one segment in one version.

A segment never changes; a row dies when a later version brings a bitmap in which it is set. What
is marked stays marked, so of two writers the second adds its rows to those of the first.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray import storage
from clipray.errors import DamagedError
from clipray.index.manifest import Deletions, IndexFolder, SegmentRecord, ShardRecord
from clipray.index.table import IDS_FILE, ROWS_FILE, RowTable, mapped_array
from clipray.manifest import FileRecord

Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Doomed:
    """Rows that are to die: those with one of the ids, or those that a filter selects.

    Attributes:
        ids: (n,) int64.
        filter: metadata filter, as `filters` describes it.
    """

    ids: Rows | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Marked:
    """A shard after rows were marked.

    Attributes:
        ids: of the rows that were live before.
    """

    shard: ShardRecord
    ids: Rows


def dead_rows(folder: IndexFolder, segment: SegmentRecord) -> Mask:
    """(rows,) bool: which rows of a segment are dead; the file has been verified.

    Raises:
        DamagedError: when the bitmap is not one of this segment.
    """
    if segment.deletions is None:
        return np.zeros(segment.rows, bool)
    path = folder.deletions / segment.deletions.name
    bits = mapped_array(path)
    if bits.dtype != np.uint8 or bits.shape != (-(-segment.rows // 8),):
        raise DamagedError(f"{path}: no bitmap of {segment.rows} rows")
    dead = np.unpackbits(bits, count=segment.rows).astype(bool)
    if (found := int(dead.sum())) != segment.dead:
        raise DamagedError(f"{path}: {found} rows are dead in it, its manifest says {segment.dead}")
    return dead


def mark_shard(root: Path, shard: ShardRecord, doomed: Doomed) -> Marked:
    """Mark rows of a shard as dead, in new bitmaps.

    Raises:
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(root)
    done = [_mark(folder, segment, doomed) for segment in shard.segments]
    ids = [found for _, found in done]
    segments = tuple(segment for segment, _ in done)
    return Marked(
        shard.model_copy(update={"segments": segments}),
        np.concatenate(ids) if ids else np.empty(0, np.int64),
    )


def died_since(root: Path, before: SegmentRecord, now: SegmentRecord) -> Rows | None:
    """Ids of the rows that are dead now and were not before; None where one lives again.

    Raises:
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(root)
    dead, had = _dead(folder, now), _dead(folder, before)
    if (had & ~dead).any():  # after a rollback
        return None
    home = folder.segment(now.id)
    now.files[IDS_FILE].verify(home / IDS_FILE)
    return RowTable(home).ids[dead & ~had]


def _mark(
    folder: IndexFolder, segment: SegmentRecord, doomed: Doomed
) -> tuple[SegmentRecord, Rows]:
    home = folder.segment(segment.id)
    segment.files[IDS_FILE].verify(home / IDS_FILE)
    if doomed.filter is not None:
        segment.files[ROWS_FILE].verify(home / ROWS_FILE)
    table, dead = RowTable(home), _dead(folder, segment)
    dying = _selected(table, doomed) & ~dead
    if not dying.any():
        return segment, np.empty(0, np.int64)
    deletions = _write(folder, dead | dying)
    return segment.model_copy(update={"deletions": deletions}), table.ids[dying]


def _selected(table: RowTable, doomed: Doomed) -> Mask:
    mask = np.zeros(len(table), bool)
    if doomed.ids is not None:
        rows = table.find(doomed.ids)
        mask[rows[rows >= 0]] = True
    if doomed.filter is not None:
        mask |= table.mask(doomed.filter)
    return mask


def _dead(folder: IndexFolder, segment: SegmentRecord) -> Mask:
    if segment.deletions:
        segment.deletions.file.verify(folder.deletions / segment.deletions.name)
    return dead_rows(folder, segment)


def _write(folder: IndexFolder, dead: Mask) -> Deletions:
    name = f"{uuid.uuid4().hex}.npy"
    bits = np.packbits(dead)
    written = storage.stream_file(folder.deletions / name, lambda sink: np.save(sink, bits))
    return Deletions(name=name, rows=int(dead.sum()), file=FileRecord.of(written))
