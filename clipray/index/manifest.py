"""An index folder: its file names, what one version is made of, and how it is committed.

A version is one manifest; the segments and deletions it names never change. Publishing the
manifest under the next free number is the commit, so of two writers one wins and the other does
its work again on top. What the data files contain is not known here.
"""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from clipray import storage
from clipray.config import Config
from clipray.errors import DamagedError, InputError, OutputError
from clipray.manifest import (
    FileRecord,
    Modality,
    ModelIdentity,
    ModelSource,
    digest,
    encode_json,
    parse_tree,
    read_tree,
)
from clipray.uri import AnyPath

log = logging.getLogger(__name__)

COMMIT_TRIES = 100

Verb = Literal["build", "append", "remove", "compact", "rollback", "tune"]
Placement = Literal["shared", "node"]


class SearchSettings(Config):
    """How hard an approximate index looks; a larger number finds more and costs more."""

    nprobe: int = Field(16, ge=1, description="lists of an IVF index that a query visits")
    ef_search: int = Field(128, ge=1, description="candidates that an HNSW index keeps in sight")
    rescore: int = Field(10, ge=1, description="candidates scored again, per wanted match")


class CurvePoint(Config):
    """What one choice of settings gave when it was measured."""

    settings: SearchSettings
    recall: dict[str, float] = Field(description="recall@10 by kind of query")
    ms: float | None = Field(None, description="CPU milliseconds a query, where it was timed")


class Tuning(Config):
    """A measured choice of settings."""

    target: float = Field(description="recall@10 that was asked for")
    reached: bool
    rows: int = Field(description="rows of the shards that were measured")
    queries: dict[str, int] = Field(description="number of queries by kind")
    curve: tuple[CurvePoint, ...]


class Deletions(Config):
    """Which rows of a segment are dead in a version: a bitmap in a file of its own."""

    name: str
    rows: int = Field(description="how many are dead")
    file: FileRecord


class SegmentRecord(Config):
    """One immutable segment, its files, and the deletions on it."""

    id: str
    rows: int = Field(description="dead ones included")
    files: dict[str, FileRecord]
    deletions: Deletions | None = None

    @property
    def dead(self) -> int:
        """Rows that are deleted."""
        return self.deletions.rows if self.deletions else 0

    @property
    def live(self) -> int:
        """Rows that can be found."""
        return self.rows - self.dead


class ShardRecord(Config):
    """The segments that one shard is made of."""

    segments: tuple[SegmentRecord, ...]
    node: str | None = Field(None, description="name of the node whose disk holds it")

    @property
    def rows(self) -> int:
        """Live rows over all segments."""
        return sum(segment.live for segment in self.segments)

    @property
    def dead(self) -> int:
        """Deleted rows over all segments."""
        return sum(segment.dead for segment in self.segments)


class Codec(Config):
    """The trained quantizer that all shards share."""

    name: str
    file: FileRecord


class IndexManifest(Config):
    """One version of an index."""

    format: Literal[2] = 2
    version: int
    parent: int | None = None
    verb: Verb = "build"
    created: datetime = Field(default_factory=lambda: datetime.now(UTC))
    model: ModelIdentity
    source: ModelSource
    modality: Modality
    metric: Literal["ip"] = "ip"
    method: str
    why: str = Field("", description="why this method")
    codec: Codec | None = None
    settings: SearchSettings = SearchSettings()
    tuning: Tuning | None = None
    placement: Placement = "shared"
    parts: tuple[str, ...] = Field((), description="fingerprints of the embeddings that came in")
    shards: tuple[ShardRecord, ...]

    @property
    def rows(self) -> int:
        """Live rows over all shards."""
        return sum(shard.rows for shard in self.shards)

    @property
    def dead(self) -> int:
        """Deleted rows over all shards."""
        return sum(shard.dead for shard in self.shards)

    @property
    def segments(self) -> tuple[SegmentRecord, ...]:
        """Segments of all shards."""
        return tuple(segment for shard in self.shards for segment in shard.segments)

    def next(self, verb: Verb, **changes: Any) -> "IndexManifest":
        """The version after this one, as far as this one knows."""
        made = {"parent": self.version, "verb": verb, "created": datetime.now(UTC)}
        return self.model_copy(update={"version": self.version + 1, **made, **changes})


class IndexFolder:
    """File names of an index folder, and how a version is committed and read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests = root / "manifests"
        self.segments = root / "segments"
        self.deletions = root / "deletions"
        self.codecs = root / "codec"
        self.building = root / "building"  # what a build has finished and not yet committed
        self.settings = root / "build.yaml"  # how a build was asked for
        self.lock = root / f".lock{storage.STAGING_SUFFIX}"  # no content

    def holds_others(self) -> bool:
        """Whether something lies there that neither an index nor a build that was stopped left."""
        ours = {self.manifests, self.segments, self.deletions, self.codecs, self.building}
        found = self.root.iterdir() if self.root.is_dir() else ()
        others = (path for path in found if path not in ours | {self.settings})
        return self.root.is_file() or not all(map(storage.is_staging, others))

    def segment(self, segment_id: str) -> Path:
        """Folder of one segment."""
        return self.segments / segment_id

    def files(self, segment: SegmentRecord) -> Iterator[tuple[Path, FileRecord]]:
        """All files of a segment, its deletions included."""
        for name, record in segment.files.items():
            yield self.segment(segment.id) / name, record
        if segment.deletions:
            yield self.deletions / segment.deletions.name, segment.deletions.file

    def passed(self, version: int) -> bool:
        """Whether this newest version is so no more: `gc` may have taken what it names."""
        return self.versions()[-1:] != [version]

    def all_files(self, manifest: IndexManifest) -> Iterator[tuple[Path, FileRecord]]:
        """All files of a version, the codec included."""
        for segment in manifest.segments:
            yield from self.files(segment)
        if manifest.codec:
            yield self.codecs / manifest.codec.name, manifest.codec.file

    def version_file(self, version: int) -> Path:
        """Manifest of one version."""
        return self.manifests / f"{version:020d}.json"

    def versions(self) -> list[int]:
        """Version numbers on disk, oldest first, readable or not."""
        stems = (path.stem for path in self.manifests.glob("*.json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Keep `gc` away while files are written that no version names yet.

        Raises:
            OutputError: while `gc` is at work.
        """
        try:
            with storage.locked(self.lock, shared=True):
                yield
        except BlockingIOError:
            raise OutputError(f"{self.root}: `clipray index gc` is at work; try again") from None

    def commit(self, manifest: IndexManifest) -> bool:
        """Publish a version; says whether it was still free.

        Raises:
            OutputError: when a file that it names is gone.
        """
        self._require_files(manifest.segments if manifest.placement == "shared" else ())
        storage.make_folder(self.manifests)
        storage.sync_folder(self.root)
        tree = manifest.model_dump(mode="json")
        data = encode_json(tree | {"checksum": _checksum(tree)})
        return storage.create_file(self.version_file(manifest.version), data)

    def amend(self, change: Callable[[IndexManifest], IndexManifest | None]) -> IndexManifest:
        """Commit what `change` makes of the newest version, again when another writer was first.

        Args:
            change: newest version → the next one, or None where nothing is to be done.

        Returns:
            the version that is the newest now.

        Raises:
            InputError: no index here.
            DamagedError: the newest version is torn; it is never passed over.
            OutputError: other writers were first every time.
        """
        for _ in range(COMMIT_TRIES):
            newest = self.read()
            changed = change(newest)
            if changed is None:
                return newest
            if self.commit(changed):
                return changed
            log.info("%s: version %d was taken, again on top", self.root, changed.version)
        raise OutputError(f"{self.root}: {COMMIT_TRIES} times another writer was first; try later")

    def read(self, version: int | None = None) -> IndexManifest:
        """Read one version, the newest by default; never falls back past a damaged one.

        Raises:
            InputError: when there is no such index or version.
            DamagedError: when the manifest is torn or changed.
        """
        versions = self.versions()
        if not versions:
            raise InputError(f"{self.root}: no index folder; `clipray index build` writes one")
        chosen = versions[-1] if version is None else version
        if chosen not in versions:
            raise InputError(f"{self.root}: has no version {chosen}, only {versions}")
        path = self.version_file(chosen)
        try:
            return checked(read_tree(path), chosen, path)
        except DamagedError as error:
            if version is None and self.passed(chosen):
                return self.read()
            older = [number for number in versions if number != chosen]
            advice = f"; `clipray index rollback` can go back to {older}" if older else ""
            raise DamagedError(f"{error}{advice}") from None

    def _require_files(self, segments: Iterable[SegmentRecord]) -> None:
        for path, record in (file for segment in segments for file in self.files(segment)):
            if not path.is_file() or path.stat().st_size != record.bytes:
                raise OutputError(
                    f"{path}: gone before its version was committed; run it again, or see "
                    "`clipray index verify`"
                )


def checked(tree: dict[str, Any], version: int, path: AnyPath) -> IndexManifest:
    """The version that the JSON object in `path` describes.

    Raises:
        DamagedError: when it was changed, or is of another version or format.
    """
    if tree.pop("checksum", None) != _checksum(tree):
        raise DamagedError(f"{path}: its checksum is wrong, it was changed or cut")
    manifest = parse_tree(IndexManifest, tree, path)
    if manifest.version != version:
        raise DamagedError(f"{path}: is version {manifest.version} under a wrong name")
    return manifest


def _checksum(tree: dict[str, Any]) -> str:
    return digest({name: value for name, value in tree.items() if name != "checksum"})
