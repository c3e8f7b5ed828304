"""`clipray index rollback` and `gc`: going back to old versions, and parting with them."""

import logging
from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.errors import DamagedError
from clipray.index.manifest import IndexFolder
from clipray.index.tasks import workers_for
from clipray.index.upkeep import SHARED, all_damage, collect_garbage, roll_back
from clipray.outputs import OutputPath
from clipray.report import Report

log = logging.getLogger(__name__)


class IndexRollbackConfig(Config):
    """Make an old version the newest again; those between stay, until gc."""

    index: OutputPath = Field(description="index folder")
    version: int = Field(ge=1, description="number of the old version")


class RollbackReport(Report):
    """What is the newest version now."""

    index: Path
    version: int
    parent: int
    rows: int

    def summary(self) -> str:
        """One line."""
        return f"{self.index}: version {self.version} is version {self.parent}, {self.rows} rows"


def rollback(config: IndexRollbackConfig) -> RollbackReport:
    """Commit an old version again, after verifying its files.

    Raises:
        InputError: no such index or version.
        DamagedError: the old version is not whole.
    """
    folder = IndexFolder(config.index.resolve())
    old = folder.read(config.version)
    with folder.writing(), workers_for(folder, old.placement, 0) as workers:
        damage = all_damage(folder, old, workers)
        for line in damage.pop(SHARED, ()):
            log.warning("%s", line)
        if damage:
            raise DamagedError("; ".join(line for lines in damage.values() for line in lines))
        manifest = roll_back(folder, config.version)
    return RollbackReport(
        index=folder.root,
        version=manifest.version,
        parent=config.version,
        rows=manifest.rows,
    )


class IndexGcConfig(Config):
    """Delete old versions and every file that the rest does not need."""

    index: OutputPath = Field(description="index folder")
    keep: int = Field(1, ge=1, description="how many of the newest versions stay")


class GcReport(Report):
    """What was freed."""

    index: Path
    versions: tuple[int, ...]
    freed: int

    def summary(self) -> str:
        """One line."""
        kept = ", ".join(map(str, self.versions))
        return f"{self.index}: {self.freed / 2**20:.1f} MiB freed; versions left: {kept}"


def gc(config: IndexGcConfig) -> GcReport:
    """Delete what nobody needs; not while a writer is at work.

    Raises:
        InputError: no index.
        DamagedError: a version that is to be kept cannot be read.
        OutputError: a writer is at work.
    """
    folder = IndexFolder(config.index.resolve())
    placement = folder.read().placement
    with workers_for(folder, placement, 0) as workers:
        freed = collect_garbage(folder, config.keep, workers)
    return GcReport(index=folder.root, versions=tuple(folder.versions()), freed=freed)
