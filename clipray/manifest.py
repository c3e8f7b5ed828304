"""What our folders say about themselves: the JSON beside the data.

Here stand what all kinds of folder share, and the file names of a model; those of embeddings are
in `embeddings`, those of an index in `index.manifest`. Each folder names its parents by checksum,
so that a query with the wrong model is refused, not answered. What the data files contain is not
known here.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

from pydantic import Field, ValidationError

from clipray import storage
from clipray.config import Config
from clipray.errors import DamagedError, MismatchError
from clipray.uri import AnyPath

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
            DamagedError: when it is missing, cut, changed or cannot be read.
        """
        self.require(path)
        try:
            found = storage.sha256_file(path)
        except OSError as error:
            raise DamagedError(f"{path}: cannot be read ({error.strerror})") from None
        if found != self.sha256:
            raise DamagedError(f"{path}: its sha256 is not the one of its manifest; it was changed")

    def require(self, path: Path) -> None:
        """Compare the size alone, which reads nothing.

        Raises:
            DamagedError: when it is missing or cut.
        """
        if not path.is_file():
            raise DamagedError(f"{path}: missing; restore it or build the folder again")
        found = path.stat().st_size
        if found != self.bytes:
            raise DamagedError(f"{path}: has {found} bytes, its manifest says {self.bytes}")


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


ManifestT = TypeVar("ManifestT", bound=Config)


def read_json(kind: type[ManifestT], path: Path) -> ManifestT:
    """Read one of the manifests.

    Raises:
        DamagedError: when it is missing, torn, or of a newer format.
    """
    return parse_tree(kind, read_tree(path), path)


def write_json(path: Path, manifest: Config) -> None:
    """Write a manifest durably, replacing what stood there."""
    storage.make_folder(path.parent)
    storage.write_file(path, encode_json(manifest.model_dump(mode="json")))


def digest(value: Any) -> str:
    """sha256 of a JSON value, independent of key order."""
    return hashlib.sha256(encode_json(value)).hexdigest()


def encode_json(value: Any) -> bytes:
    """UTF-8 with sorted keys; a lone surrogate, as of an odd file name, stays what it is."""
    return json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False).encode(
        "utf-8", errors="surrogatepass"
    )


def read_tree(path: Path) -> dict[str, Any]:
    """The JSON object of a manifest.

    Raises:
        DamagedError: when it is missing, torn or too large.
    """
    try:
        if path.stat().st_size > MAX_MANIFEST_BYTES:
            raise DamagedError(f"{path}: larger than {MAX_MANIFEST_BYTES} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise DamagedError(f"{path}: cannot be read as JSON ({error})") from None
    return decode_tree(data, path)


def decode_tree(data: bytes, path: AnyPath) -> dict[str, Any]:
    """The JSON object in what was read from `path`.

    Raises:
        DamagedError: when it is torn.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path}: cannot be read as JSON ({error})") from None
    if not isinstance(tree, dict):
        raise DamagedError(f"{path}: expected a JSON object, found {type(tree).__name__}")
    return tree


def parse_tree(kind: type[ManifestT], tree: dict[str, Any], path: AnyPath) -> ManifestT:
    """Validate the JSON object of a manifest.

    Raises:
        DamagedError: when it is of another kind or format.
    """
    (known,) = get_args(kind.model_fields["format"].annotation) if _has_format(kind) else (None,)
    found = tree.get("format")
    if known and isinstance(found, int) and found != known:
        advice = "update clipray" if found > known else "write the folder again"
        raise DamagedError(f"{path}: format {found}, this clipray reads {known}; {advice}")
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise DamagedError(
            f"{path}: not a {kind.__name__} ({error.error_count()} faults)"
        ) from None


def _has_format(kind: type[Config]) -> bool:
    return "format" in kind.model_fields
