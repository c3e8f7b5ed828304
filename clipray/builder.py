"""Building the shards of an index: pure functions over an embeddings folder.

They take paths and numbers, so they run the same in a Ray task and in a test. The manifest of the
index is not written here; a segment that no manifest names does not exist.
"""

import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipray import storage
from clipray.embeddings import KEY_COLUMN, Parts
from clipray.errors import ConfigError
from clipray.manifest import Codec, IndexFolder, SegmentRecord, ShardRecord
from clipray.segment import new_index, read_faiss, write_faiss, write_segment
from clipray.shard import row_id

log = logging.getLogger(__name__)

EXACT_UP_TO = 20_000  # rows; below, an exact scan takes about a millisecond
TRAINING_ROWS = 200_000
NORM_TOLERANCE = 0.01  # float16 moves a unit vector's norm by less than 0.001

Rows = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class PartSlice:
    """Rows `start` to `stop` of one embedding part."""

    part: int
    start: int
    stop: int


@dataclass(frozen=True)
class ShardPlan:
    """Everything that a task needs to build one shard.

    Attributes:
        parts: the embedding parts that this shard reads.
        slices: the rows of them that are its own.
        total_rows: rows of all shards together.
        repeated: by part, the rows whose key stands in an earlier row.
    """

    parts: Parts
    slices: tuple[PartSlice, ...]
    index: Path
    method: str
    codec: Codec | None
    total_rows: int
    repeated: Mapping[int, Rows] = field(default_factory=dict)


def plan_shards(parts: Parts, index: Path, method: str, shards: int) -> list[ShardPlan]:
    """Train what all shards share and cut the parts into shards.

    Raises:
        ConfigError: an unusable method, or more shards than rows.
    """
    slices = assign_rows({number: parts.parts[number].rows for number in parts}, shards)
    chosen = choose_method(method, parts.rows)
    codec = _train_codec(parts, IndexFolder(index), chosen)
    repeated = _find_repeated(parts)
    return [
        ShardPlan(
            parts=parts.only(piece.part for piece in mine),
            slices=tuple(mine),
            index=index,
            method=chosen,
            codec=codec,
            total_rows=parts.rows,
            repeated={p.part: repeated[p.part] for p in mine if p.part in repeated},
        )
        for mine in slices
    ]


def choose_method(method: str, rows: int) -> str:
    """Resolve `auto`: an exact scan for small collections, HNSW32 beyond."""
    if method != "auto":
        return method
    return "Flat" if rows <= EXACT_UP_TO else "HNSW32"


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


def build_shard(plan: ShardPlan) -> tuple[ShardRecord, dict[str, int]]:
    """Build one shard as one segment and publish it; returns also rows left out by reason."""
    folder = IndexFolder(plan.index)
    index = _empty_index(plan, folder)
    rejected: dict[str, int] = {}
    kept = [_kept_rows(plan, piece, rejected) for piece in plan.slices]
    vectors = np.concatenate([part for part, _ in kept])
    rows = _concat([table for _, table in kept])
    if not len(vectors):
        return ShardRecord(segments=()), rejected
    segment_id = uuid.uuid4().hex
    with storage.staged_folder(folder.segment(segment_id)) as staged:
        files = write_segment(staged, index, vectors, rows)
    record = SegmentRecord(id=segment_id, rows=len(vectors), files=files)
    return ShardRecord(segments=(record,)), rejected


def _find_repeated(parts: Parts) -> dict[int, Rows]:
    ids = {n: np.array([row_id(key) for key in parts.keys(n)], np.int64) for n in parts}
    _, first = np.unique(np.concatenate(list(ids.values())), return_index=True)
    is_first = np.zeros(sum(map(len, ids.values())), bool)
    is_first[first] = True
    found, start = {}, 0
    for number, part in ids.items():
        again = np.flatnonzero(~is_first[start : start + len(part)])
        start += len(part)
        if len(again):
            found[number] = again
    return found


def _train_codec(parts: Parts, folder: IndexFolder, method: str) -> Codec | None:
    """Train one quantizer on rows of all parts and publish it; None where none is needed."""
    index = new_index(method, parts.dim, parts.rows)
    if index.is_trained:
        return None
    sample = _sample(parts)
    log.info("training %s on %d rows", method, len(sample))
    try:
        index.train(sample)
    except RuntimeError as error:
        told = str(error).splitlines()[-1][-200:]
        raise ConfigError(
            f"method '{method}': cannot be trained on {len(sample)} rows ({told})"
        ) from None
    scratch = folder.codec(f"{uuid.uuid4().hex}.faiss")
    record = write_faiss(scratch, index)
    name = f"{record.sha256[:16]}.faiss"
    scratch.replace(folder.codec(name))
    storage.sync_folder(scratch.parent)
    return Codec(name=name, file=record)


def _sample(parts: Parts) -> NDArray[np.float32]:
    share = min(1.0, TRAINING_ROWS / parts.rows)
    usable = (vectors[_unit(vectors)] for vectors in map(parts.vectors, parts))
    return np.concatenate([_spread(vectors, share) for vectors in usable]).astype(np.float32)


def _spread(vectors: NDArray[np.float16], share: float) -> NDArray[np.float16]:
    places = np.linspace(0, len(vectors) - 1, round(len(vectors) * share))
    return vectors[places.astype(np.int64)]


def _empty_index(plan: ShardPlan, folder: IndexFolder) -> Any:
    if plan.codec is None:
        return new_index(plan.method, plan.parts.dim, plan.total_rows)
    path = folder.codec(plan.codec.name)
    plan.codec.file.verify(path)
    return read_faiss(path)


def _kept_rows(
    plan: ShardPlan, piece: PartSlice, rejected: dict[str, int]
) -> tuple[NDArray[np.float16], pa.Table]:
    vectors = plan.parts.vectors(piece.part)
    unit = _unit(vectors)
    mine = np.zeros(len(vectors), bool)
    mine[piece.start : piece.stop] = True
    _count(rejected, "not a unit vector", int((mine & ~unit).sum()))
    first = np.ones(len(vectors), bool)
    first[plan.repeated.get(piece.part, np.empty(0, np.int64))] = False
    _count(rejected, "repeated key", int((mine & unit & ~first).sum()))
    keep = mine & unit & first
    return vectors[keep], _with_ids(plan.parts.table(piece.part)).filter(pa.array(keep))


def _unit(vectors: NDArray[np.float16]) -> NDArray[np.bool_]:
    norms = np.linalg.norm(vectors.astype(np.float32), axis=1)
    return np.asarray(np.abs(norms - 1) <= NORM_TOLERANCE)  # False for NaN


def _count(rejected: dict[str, int], reason: str, rows: int) -> None:
    if rows:
        rejected[reason] = rejected.get(reason, 0) + rows


def _concat(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of all parts; where they hold a column in types that do not meet, it becomes text."""
    types: dict[str, set[pa.DataType]] = {}
    for column in (column for table in tables for column in table.schema):
        types.setdefault(column.name, set()).add(column.type)
    mixed = {name for name, found in types.items() if not _meet(name, found)}
    return pa.concat_tables(
        [_as_text(table, mixed & set(table.column_names)) for table in tables],
        promote_options="permissive",
    )


def _meet(name: str, types: Iterable[pa.DataType]) -> bool:
    try:
        schemas = [pa.schema([(name, kind)]) for kind in types]
        pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return True


def _as_text(table: pa.Table, names: Iterable[str]) -> pa.Table:
    for name in names:
        text = table.column(name).cast(pa.string())
        table = table.set_column(table.column_names.index(name), name, text)
    return table


def _with_ids(table: pa.Table) -> pa.Table:
    keys = table.column(KEY_COLUMN).to_pylist()
    renamed = table.rename_columns(_column_names(table.column_names))
    return renamed.add_column(0, "id", pa.array([row_id(key) for key in keys], pa.int64()))


def _column_names(names: Sequence[str]) -> list[str]:
    # `id` and `key` are ours; a column of the input with that name keeps its values beside them.
    renamed: list[str] = []
    for name in names:
        free = f"input_{name}" if name in ("id", "key") else name
        while free != name and free in names:
            free = f"input_{free}"
        renamed.append("key" if name == KEY_COLUMN else free)
    return renamed
