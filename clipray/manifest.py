"""File names on disk, the JSON beside the data, and the commit protocol.

Of a model and of an index; those of embeddings stand in `embeddings`. Each folder names its
parents by checksum, so that a query with the wrong model is refused, not answered. What the data
files contain is not known here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError

from clipray import storage
from clipray.config import Config
from clipray.errors import DamagedError, InputError, MismatchError, OutputError

FORMAT = 1
MAX_MANIFEST_BYTES = 256 << 20
TOWER_FILE = "tower.json"  # of an exported folder, the rest of which is in `exported`

Modality = Literal["image", "text"]
Modalities = Literal["image", "text", "both"]


class FileRecord(Config):
    """Size and checksum of one file, as they were meant to be written."""

    bytes: int
    sha256: str

    @classmethod
    def of(cls, written: tuple[int, str]) -> Self:
        """Record what `storage.stream_file` returned."""
        size, checksum = written
        return cls(bytes=size, sha256=checksum)

    def verify(self, path: Path) -> None:
        """Compare with the file on disk.

        Raises:
            DamagedError: when it is missing, cut or changed.
        """
        if not path.is_file():
            raise DamagedError(f"{path}: missing; restore it or build the folder again")
        found = path.stat().st_size
        if found != self.bytes:
            raise DamagedError(f"{path}: has {found} bytes, its manifest says {self.bytes}")
        if storage.sha256_file(path) != self.sha256:
            raise DamagedError(f"{path}: its sha256 is not the one of its manifest; it was changed")


class ModelIdentity(Config):
    """What makes two models give the same vectors: weights, preprocessing and tokenizer."""

    name: str = Field(description="for people; takes no part in comparisons")
    dim: int
    weights: str
    preprocess: str
    tokenizer: str

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal exactly for interchangeable models."""
        parts = f"{self.dim} {self.weights} {self.preprocess} {self.tokenizer}"
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def __str__(self) -> str:
        return f"{self.name} ({self.fingerprint})"

    def require(self, other: "ModelIdentity", what: str) -> None:
        """Refuse `other`, which `what` brought, unless it is interchangeable with this model.

        Raises:
            MismatchError: naming both.
        """
        if self.fingerprint != other.fingerprint:
            raise MismatchError(f"{what} is {other}, but the folder was written with {self}")


class ModelSource(Config):
    """Where to load a model from: an open_clip name with a tag or file, or a model folder."""

    name: str
    pretrained: str | None = None

    def absolute(self) -> "ModelSource":
        """The same for a worker that runs in another folder; names and tags stay as they are."""
        name, file = Path(self.name), Path(self.pretrained or "")
        is_path = (
            name.is_file()
            or ModelFolder(name).config.is_file()
            or any(name.glob(f"*/{TOWER_FILE}"))
        )
        return ModelSource(
            name=str(name.resolve()) if is_path else self.name,
            pretrained=str(file.resolve()) if file.is_file() else self.pretrained,
        )


class ModelManifest(Config):
    """`clipray.json` of a model folder."""

    format: Literal[1] = 1
    identity: ModelIdentity
    parents: dict[str, str] = Field(default_factory=dict)
    metrics: dict[str, float] = Field(default_factory=dict)


class ModelFolder:
    """File names of a model; the first two are what vanilla open_clip reads as `local-dir:`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.config = root / "open_clip_config.json"
        self.weights = root / "open_clip_model.safetensors"
        self.manifest = root / "clipray.json"


def modalities_of(given: Modalities) -> tuple[Modality, ...]:
    """The towers behind a choice of modalities."""
    return ("image", "text") if given == "both" else (given,)


class SegmentRecord(Config):
    """One immutable Faiss segment and its files."""

    id: str
    rows: int
    files: dict[str, FileRecord]


class ShardRecord(Config):
    """The segments that one shard is made of."""

    segments: tuple[SegmentRecord, ...]

    @property
    def rows(self) -> int:
        """Rows over all segments."""
        return sum(segment.rows for segment in self.segments)


class Codec(Config):
    """The trained quantizer that all shards share."""

    name: str
    file: FileRecord


class IndexManifest(Config):
    """One version of an index."""

    format: Literal[1] = 1
    version: int
    parent: int | None = None
    model: ModelIdentity
    source: ModelSource
    modality: Modality
    metric: Literal["ip"] = "ip"
    method: str
    codec: Codec | None = None
    shards: tuple[ShardRecord, ...]

    @property
    def rows(self) -> int:
        """Rows over all shards."""
        return sum(shard.rows for shard in self.shards)


class IndexFolder:
    """File names of an index folder, and how a version is committed and read."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifests = root / "manifests"

    def segment(self, segment_id: str) -> Path:
        """Folder of one segment."""
        return self.root / "segments" / segment_id

    def codec(self, name: str) -> Path:
        """A trained, empty Faiss index."""
        return self.root / "codec" / name

    def version_file(self, version: int) -> Path:
        """Manifest of one version."""
        return self.manifests / f"{version:020d}.json"

    def versions(self) -> list[int]:
        """Version numbers on disk, oldest first, readable or not."""
        stems = (path.stem for path in self.manifests.glob("*.json"))
        return sorted(int(stem) for stem in stems if stem.isdecimal())

    def commit(self, manifest: IndexManifest) -> None:
        """Publish a version; its segments must be on the disk.

        Raises:
            OutputError: when another writer took that version number.
        """
        storage.make_folder(self.manifests)
        storage.sync_folder(self.root)
        tree = manifest.model_dump(mode="json")
        data = _encode(tree | {"checksum": _checksum(tree)})
        path = self.version_file(manifest.version)
        if not storage.create_file(path, data):
            raise OutputError(f"{path}: another writer has committed this version; run it again")

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
        tree = _read_tree(path)
        if tree.pop("checksum", None) != _checksum(tree):
            raise DamagedError(f"{path}: its checksum is wrong, it was changed or cut")
        return _parse(IndexManifest, tree, path)


ManifestT = TypeVar("ManifestT", bound=Config)


def read_json(kind: type[ManifestT], path: Path) -> ManifestT:
    """Read one of the manifests.

    Raises:
        DamagedError: when it is missing, torn, or of a newer format.
    """
    return _parse(kind, _read_tree(path), path)


def write_json(path: Path, manifest: Config) -> None:
    """Write a manifest durably, replacing what stood there."""
    storage.make_folder(path.parent)
    storage.write_file(path, _encode(manifest.model_dump(mode="json")))


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(_encode(value)).hexdigest()


def _encode(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode(
        "utf-8", errors="surrogatepass"
    )


def _checksum(tree: dict[str, Any]) -> str:
    return digest({name: value for name, value in tree.items() if name != "checksum"})


def _read_tree(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes, no manifest")
        tree = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(tree, dict):
        raise DamagedError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    return tree


def _parse(kind: type[ManifestT], tree: dict[str, Any], path: Path) -> ManifestT:
    found = tree.get("format")
    if isinstance(found, int) and found > FORMAT:
        raise DamagedError(f"{path}: format {found}, this clipray reads {FORMAT}; update clipray")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise DamagedError(
            f"{path}: not a {kind.__name__} ({error.error_count()} faults)"
        ) from None
