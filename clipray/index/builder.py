"""Building segments: pure functions over embeddings or older segments.

They take paths and values, so they run the same in a Ray task and in a test. No manifest is
written here; a segment that no manifest names does not exist.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from clipray import storage
from clipray.errors import ConfigError
from clipray.index.codec import empty_index, filling
from clipray.index.feed import Feed
from clipray.index.manifest import Codec, IndexFolder, SegmentRecord
from clipray.index.writer import SegmentWriter


@dataclass(frozen=True, slots=True)
class PartSlice:
    """Rows `start` to `stop` of one embedding part."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class SegmentPlan:
    """Everything that a task needs to build one segment.

    Attributes:
        feed: its rows.
        dim: length of a vector.
        method: as for `method.new_index`.
        codec: the trained quantizer; None for a method that needs none.
        total_rows: rows of all shards together.
    """

    feed: Feed
    dim: int
    method: str
    codec: Codec | None
    total_rows: int


def build_segment(root: Path, plan: SegmentPlan) -> SegmentRecord | None:
    """Build a segment, read it back, and publish it; None where there is no row.

    Raises:
        DamagedError: an input that is missing or changed, or a disk that gives back other bytes.
    """
    rows = plan.feed.rows
    if not rows:
        return None
    folder = IndexFolder(root)
    index = empty_index(folder, plan.codec, plan.method, plan.dim, plan.total_rows)
    segment_id = uuid.uuid4().hex
    with storage.staged_folder(folder.segment(segment_id)) as staged:
        schema = plan.feed.schema(folder)
        with SegmentWriter(staged, rows, plan.dim, schema, index) as writer, filling(index):
            for vectors, table in plan.feed.chunks(folder):
                writer.add(vectors, table)
        for name, file in writer.files.items():
            file.verify(staged / name)
    return SegmentRecord(id=segment_id, rows=rows, files=writer.files)


def assign_rows(rows: Mapping[int, int], shards: int) -> list[list[PartSlice]]:
    """Give every shard a run of neighbouring rows, of as equal numbers as whole parts allow.

    Parts are cut only where there are fewer of them than shards.

    Args:
        rows: number of rows by part.
        shards: how many shards, each gets at least one row.

    Raises:
        ConfigError: fewer rows than shards.
    """
    filled = {number: rows[number] for number in sorted(rows) if rows[number]}
    if shards > sum(filled.values()):
        raise ConfigError(
            f"shards: {shards} asked for, but there are {sum(filled.values())} rows; use fewer"
        )
    if shards > len(filled):
        return [_cut(filled, shard, shards) for shard in range(shards)]
    whole = {number: PartSlice(number, 0, count) for number, count in filled.items()}
    return [[whole[number] for number in run] for run in _runs(filled, shards)]


def _runs(rows: Mapping[int, int], shards: int) -> list[list[int]]:
    numbers = list(rows)
    assigned: list[list[int]] = [[] for _ in range(shards)]
    total, taken, shard = sum(rows.values()), 0, 0
    for place, number in enumerate(numbers):
        full = taken >= total * (shard + 1) / shards
        needed = len(numbers) - place == shards - shard - 1  # one part for each shard still empty
        if assigned[shard] and shard < shards - 1 and (full or needed):
            shard += 1
        assigned[shard].append(number)
        taken += rows[number]
    return assigned


def _cut(rows: Mapping[int, int], shard: int, shards: int) -> list[PartSlice]:
    total, before, found = sum(rows.values()), 0, []
    first, last = total * shard // shards, total * (shard + 1) // shards
    for number, count in rows.items():
        start, stop = max(first - before, 0), min(last - before, count)
        if start < stop:
            found.append(PartSlice(number, start, stop))
        before += count
    return found
