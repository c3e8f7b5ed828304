"""`clipray index info` and `clipray index verify`: what an index is, and whether it is whole."""

from datetime import datetime
from pathlib import Path

from pydantic import Field

from clipray.config import Config
from clipray.index.manifest import IndexFolder, IndexManifest, SearchSettings, ShardRecord
from clipray.index.tasks import workers_for
from clipray.index.upkeep import all_damage
from clipray.report import DONE, FAILED, Report


class IndexInfoConfig(Config):
    """Say what an index is, without reading its files."""

    index: Path = Field(description="index folder")
    version: int | None = Field(None, ge=1, description="number; by default the newest")


class ShardInfo(Config):
    """One shard in numbers."""

    rows: int
    dead: int
    segments: int
    bytes: int
    node: str | None

    @classmethod
    def of(cls, shard: ShardRecord) -> "ShardInfo":
        """From the manifest."""
        files = [file.bytes for segment in shard.segments for file in segment.files.values()]
        return cls(
            rows=shard.rows,
            dead=shard.dead,
            segments=len(shard.segments),
            bytes=sum(files),
            node=shard.node,
        )


class InfoReport(Report):
    """What a version of an index is."""

    index: Path
    version: int
    versions: tuple[int, ...]
    verb: str
    created: datetime
    model: str
    modality: str
    dim: int
    rows: int
    dead: int
    method: str
    why: str
    settings: SearchSettings
    recall: dict[str, float] | None
    shards: tuple[ShardInfo, ...]

    def summary(self) -> str:
        """A few lines, and one for each shard."""
        measured = self.recall or {}
        told = ", ".join(f"{kind} {value:.3f}" for kind, value in measured.items())
        lines = [
            f"{self.index}: version {self.version} of {len(self.versions)} on disk, by {self.verb} "
            f"at {self.created:%Y-%m-%d %H:%M:%S} UTC",
            f"{self.rows} {self.modality} rows of {self.dim} dimensions, {self.dead} dead",
            f"model {self.model}",
            f"method {self.method} ({self.why})",
            f"nprobe {self.settings.nprobe}, efSearch {self.settings.ef_search}, rescore "
            f"{self.settings.rescore}" + (f"; recall@10 measured: {told}" if told else ""),
        ]
        lines += [
            f"shard {number}: {shard.rows} rows, {shard.dead} dead, {shard.segments} segments, "
            f"{shard.bytes / 2**20:.1f} MiB" + (f" on {shard.node}" if shard.node else "")
            for number, shard in enumerate(self.shards)
        ]
        return "\n".join(lines)


def info(config: IndexInfoConfig) -> InfoReport:
    """Read one manifest.

    Raises:
        InputError: no such index or version.
        DamagedError: the manifest is torn or changed.
    """
    folder = IndexFolder(config.index.resolve())
    manifest = folder.read(config.version)
    return InfoReport(
        index=folder.root,
        version=manifest.version,
        versions=tuple(folder.versions()),
        verb=manifest.verb,
        created=manifest.created,
        model=str(manifest.model),
        modality=manifest.modality,
        dim=manifest.model.dim,
        rows=manifest.rows,
        dead=manifest.dead,
        method=manifest.method,
        why=manifest.why,
        settings=manifest.settings,
        recall=_measured(manifest),
        shards=tuple(map(ShardInfo.of, manifest.shards)),
    )


class IndexVerifyConfig(Config):
    """Compare every file of an index with its checksum."""

    index: Path = Field(description="index folder")
    version: int | None = Field(None, ge=1, description="number; by default the newest")


class VerifyReport(Report):
    """Whether a version is whole.

    Attributes:
        files: how many were read.
        damage: what is wrong, by shard; -1 is what all shards share.
    """

    index: Path
    version: int
    files: int
    bytes: int
    damage: dict[int, tuple[str, ...]]

    @property
    def exit_code(self) -> int:
        """0 when it is whole, else 1."""
        return FAILED if self.damage else DONE

    def summary(self) -> str:
        """One line, or one for each damage."""
        read = f"{self.files} files, {self.bytes / 2**20:.1f} MiB"
        if not self.damage:
            return f"{self.index}: version {self.version} is whole ({read})"
        lines = [f"{self.index}: version {self.version} is damaged ({read} read)"]
        return "\n".join(lines + [line for found in self.damage.values() for line in found])


def verify(config: IndexVerifyConfig) -> VerifyReport:
    """Read all files of a version.

    Raises:
        InputError: no such index or version.
        DamagedError: the manifest is torn or changed.
    """
    folder = IndexFolder(config.index.resolve())
    manifest = folder.read(config.version)
    with workers_for(folder, manifest.placement, 0) as workers:
        damage = all_damage(folder, manifest, workers)
    files = [file for _, file in folder.all_files(manifest)]
    return VerifyReport(
        index=folder.root,
        version=manifest.version,
        files=len(files),
        bytes=sum(file.bytes for file in files),
        damage={shard: tuple(lines) for shard, lines in damage.items()},
    )


def _measured(manifest: IndexManifest) -> dict[str, float] | None:
    curve = manifest.tuning.curve if manifest.tuning else ()
    chosen = [point for point in curve if point.settings == manifest.settings]
    return chosen[-1].recall if chosen else None
