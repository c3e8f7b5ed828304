"""`clipray index build`: a new index, its shards built by Ray tasks.

Run again after it was killed, a build goes on with the shards that are finished.
"""

import logging
import sys
from pathlib import Path

from pydantic import Field

from clipray import cluster, room, storage
from clipray.config import to_yaml
from clipray.embeddings import Parts
from clipray.errors import OutputError, UnavailableError
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder
from clipray.index.tasks import RayTasks
from clipray.index.tuning import tune
from clipray.index.upkeep import collect_garbage
from clipray.index.workers import Workers
from clipray.manifest import Modality
from clipray.outputs import OutputPath
from clipray.report import DONE, DONE_WITH_REJECTS, Report

log = logging.getLogger(__name__)


class IndexBuildConfig(IndexOptions):
    """Build an index over an embeddings folder."""

    embeddings: Path = Field(description="folder that `clipray embed` wrote")
    index: OutputPath = Field(description="index folder to write; must not hold an index yet")
    modality: Modality | None = Field(
        None, description="image or text; by default images where there are any"
    )


class BuildReport(Report):
    """What a build made.

    Attributes:
        index: the index folder.
        version: the committed version.
        why: why this method.
        rows: rows of all shards.
        rejected: rows left out, by reason.
    """

    index: Path
    version: int
    modality: Modality
    method: str
    why: str
    shards: int
    rows: int
    rejected: dict[str, int]

    @property
    def exit_code(self) -> int:
        """0 when every row is in the index, else 3."""
        return DONE_WITH_REJECTS if self.rejected else DONE

    def summary(self) -> str:
        """One line, one about the method, and one for each reason."""
        made = f"{self.rows} {self.modality} rows, {self.method}, {self.shards} shards"
        lines = [f"{self.index}: version {self.version}, {made}", f"method: {self.why}"]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        return "\n".join(lines)


def build(config: IndexBuildConfig) -> BuildReport:
    """Build all shards and commit version 1.

    Raises:
        InputError: no embeddings, none of that modality, or no usable row.
        OutputError: the index folder is not empty.
        ConfigError: an unusable method, or more shards than rows.
    """
    parts = Parts.open(config.embeddings.resolve(), config.modality)
    folder = IndexFolder(config.index.resolve())
    _require_free(folder)
    if parts.unfinished > 0:
        log.warning("%s: %d shards are not embedded, left out", parts.root, parts.unfinished)
    with cluster.session(cpus=1):
        room.wait()
        workers = RayTasks(folder, config.placement)
        with folder.writing():
            made = construct(parts, folder, config, workers)
            manifest = made.manifest
            if config.method == "auto":
                manifest = tune(manifest, config.recall, workers, parts.root)
            storage.write_file(folder.settings, to_yaml(config).encode())
            if not folder.commit(manifest):
                raise OutputError(f"{folder.root}: another build was first; choose another folder")
        _tidy(folder, workers)
    return BuildReport(
        index=folder.root,
        version=manifest.version,
        modality=manifest.modality,
        method=manifest.method,
        why=manifest.why,
        shards=len(manifest.shards),
        rows=manifest.rows,
        rejected=made.rejected,
    )


def _tidy(folder: IndexFolder, workers: Workers) -> None:
    """Delete what other tries left behind; all versions stay, as does all while somebody writes.

    On a node that is lost by now it stays as well, until the next `gc`.
    """
    try:
        collect_garbage(folder, sys.maxsize, workers)
    except (OutputError, UnavailableError, OSError) as error:
        log.info("%s", error)


def _require_free(folder: IndexFolder) -> None:
    versions = folder.versions()
    if versions:
        raise OutputError(
            f"{folder.root}: holds an index at version {versions[-1]}; choose another, or add to "
            "it with `clipray index append`"
        )
    if folder.holds_others():
        raise OutputError(f"{folder.root}: holds something that is no index; choose another folder")
