"""`clipray index remove`: rows that are never found again, by key, id or metadata."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clipray.config import Config
from clipray.errors import InputError
from clipray.filters import FilterTree
from clipray.index.appending import mark
from clipray.index.compact import compact_where_needed
from clipray.index.deletions import Doomed
from clipray.index.manifest import IndexFolder, IndexManifest
from clipray.index.reader import check_filter
from clipray.index.table import read_columns, row_ids
from clipray.index.tasks import workers_for
from clipray.index.workers import Workers
from clipray.outputs import OutputPath
from clipray.report import Report

MAX_LINES_BYTES = 4 << 30
SHOWN = 5


class IndexRemoveConfig(Config):
    """Remove rows from an index, at once for whoever opens it from now on."""

    index: OutputPath = Field(description="index folder")
    keys: Path | None = Field(None, description="file with one key a line")
    key: tuple[str, ...] = Field((), description="a key; may be repeated")
    id: tuple[int, ...] = Field((), description="an id; may be repeated")
    filter: FilterTree | None = Field(
        None, description='rows by their metadata, as JSON: {"NSFW": {"$in": ["NSFW"]}}'
    )
    compact: bool = Field(
        True, description="rewrite segments of which more than 20% is dead, or which are too many"
    )

    @model_validator(mode="after")
    def _something(self) -> "IndexRemoveConfig":
        if not (self.keys or self.key or self.id or self.filter):
            raise ValueError("give --keys, --key, --id or --filter")
        return self


class RemoveReport(Report):
    """What a removal did.

    Attributes:
        version: the newest now.
        removed: rows that were there.
        unknown: keys and ids that were in no row.
        examples: some of the unknown ones.
        total: live rows of the index now.
    """

    index: Path
    version: int
    removed: int
    unknown: int
    examples: tuple[str, ...]
    total: int

    def summary(self) -> str:
        """One line, and one about what was not there."""
        told = f"{self.removed} rows removed, {self.total} rows now"
        lines = [f"{self.index}: version {self.version}, {told}"]
        if self.unknown:
            some = ", ".join(self.examples)
            lines.append(f"in no row: {self.unknown}, such as {some}")
        return "\n".join(lines)


def remove(config: IndexRemoveConfig) -> RemoveReport:
    """Remove rows in one version; what is not there changes nothing.

    Raises:
        InputError: no index, or no file of keys.
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(config.index.resolve())
    base = folder.read()
    if config.filter and base.placement == "shared":
        check_filter(config.filter, _columns(folder, base))
    named = _named(config)
    ids = np.array(sorted(named), np.int64)
    doomed = Doomed(ids=ids if named else None, filter=config.filter)
    with folder.writing(), workers_for(folder, base.placement, 0) as workers:
        manifest, removed = remove_rows(folder, doomed, workers)
    if config.compact:
        manifest = compact_where_needed(folder, manifest)
    unknown = np.setdiff1d(ids, removed)
    return RemoveReport(
        index=folder.root,
        version=manifest.version,
        removed=len(removed),
        unknown=len(unknown),
        examples=tuple(named[row_id] for row_id in unknown[:SHOWN].tolist()),
        total=manifest.rows,
    )


def remove_rows(
    folder: IndexFolder, doomed: Doomed, workers: Workers
) -> tuple[IndexManifest, NDArray[np.int64]]:
    """Mark rows in one version; returns the newest version and the ids that were live."""
    removed = np.empty(0, np.int64)

    def on_top(newest: IndexManifest) -> IndexManifest | None:
        nonlocal removed
        marked = mark(newest, doomed, workers)
        removed = np.concatenate([ids for _, ids in marked])
        if not len(removed):
            return None
        return newest.next("remove", shards=tuple(shard for shard, _ in marked))

    return folder.amend(on_top), removed


def _columns(folder: IndexFolder, manifest: IndexManifest) -> set[str]:
    homes = (folder.segment(segment.id) for segment in manifest.segments)
    return {name for home in homes for name in read_columns(home)}


def _named(config: IndexRemoveConfig) -> dict[int, str]:
    """What was asked for, by id."""
    keys = [*config.key, *(_lines(config.keys) if config.keys else ())]
    found = dict(zip(row_ids(keys).tolist(), keys, strict=True))
    return found | {number: f"id {number}" for number in config.id}


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; --keys takes one with a key a line")
    if path.stat().st_size > MAX_LINES_BYTES:
        raise InputError(f"{path}: larger than {MAX_LINES_BYTES >> 30} GiB")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error})") from None
    return [line for line in text.split("\n") if line]
