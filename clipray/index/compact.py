"""`clipray index compact`: one segment a shard again, or another number of shards."""

import logging
from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.errors import ClipRayError
from clipray.index.compaction import compact as run
from clipray.index.compaction import needed
from clipray.index.manifest import IndexFolder, IndexManifest
from clipray.index.tasks import workers_for
from clipray.outputs import OutputPath
from clipray.report import Report

log = logging.getLogger(__name__)


class IndexCompactConfig(Config):
    """Write the live rows of an index anew, without the dead ones."""

    index: OutputPath = Field(description="index folder")
    shards: int | None = Field(None, ge=1, description="how many shards; by default as many as now")


class CompactReport(Report):
    """What a compaction did."""

    index: Path
    version: int
    rows: int
    dropped: int
    segments_before: int
    segments: int
    shards: int

    def summary(self) -> str:
        """One line."""
        return (
            f"{self.index}: version {self.version}, {self.rows} rows in {self.segments} segments "
            f"of {self.shards} shards (before: {self.segments_before} segments); "
            f"{self.dropped} dead rows left out. `clipray index gc` frees what older versions hold"
        )


def compact_where_needed(folder: IndexFolder, done: IndexManifest) -> IndexManifest:
    """Rewrite segments that are worn or too many after a change; returns the newest version.

    The change is committed, so an error here is told and does not fail it.
    """
    plan = needed(done)
    if not plan:
        return done
    rows = sum(rewrite.rows for rewrite in plan)
    try:
        with folder.writing(), workers_for(folder, done.placement, rows) as workers:
            return run(folder, workers, full=False)
    except (ClipRayError, OSError) as error:
        log.warning("version %d is committed, but not compacted: %s", done.version, error)
        return done


def compact(config: IndexCompactConfig) -> CompactReport:
    """Rewrite what is worth it, in one version.

    Raises:
        InputError: no index.
        ConfigError: shards that cannot be cut anew.
        DamagedError: a file that is missing or changed.
    """
    folder = IndexFolder(config.index.resolve())
    base = folder.read()
    with folder.writing(), workers_for(folder, base.placement, base.rows) as workers:
        manifest = run(folder, workers, shards=config.shards)
    return CompactReport(
        index=folder.root,
        version=manifest.version,
        rows=manifest.rows,
        dropped=base.dead - manifest.dead,
        segments_before=len(base.segments),
        segments=len(manifest.segments),
        shards=len(manifest.shards),
    )
