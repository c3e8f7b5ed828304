"""An embeddings folder: its file names, its done-markers, and its finished parts.

A part counts when its done-marker stands, and is read with its checksums verified. Who writes
parts, and what is built from them, is not known here.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from clipray import storage
from clipray.config import Config
from clipray.errors import DamagedError, InputError
from clipray.manifest import (
    FileRecord,
    Modalities,
    Modality,
    ModelIdentity,
    ModelSource,
    digest,
    modalities_of,
    read_json,
)

KEY_COLUMN = "image_path"  # clip-retrieval's name for it

Halves = NDArray[np.float16]


class EmbeddingSettings(Config):
    """What decides rows and vectors beside the model; the same for all parts of a folder."""

    modality: Modalities
    filter: dict[str, Any] | None = None
    precision: str = "auto"
    backend: str = "auto"
    decode: str = "exact"

    def differences(self, other: "EmbeddingSettings") -> list[str]:
        """`name mine, not theirs`, for each that differs."""
        pairs = ((name, value, getattr(other, name)) for name, value in self)
        return [f"{name} {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs]


class EmbeddingsManifest(Config):
    """`embeddings.json`: what all parts have in common, and which shard became which part."""

    format: Literal[1] = 1
    model: ModelIdentity
    source: ModelSource
    settings: EmbeddingSettings
    shards: tuple[str, ...] = ()

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """The towers that every row went through."""
        return modalities_of(self.settings.modality)


class PartManifest(Config):
    """Done-marker of one part, written last.

    Every sample of the shard is in it: samples = rows + rejected + filtered.
    """

    format: Literal[1] = 1
    shard: str
    signature: str = Field(description="changes when the input shard does")
    model: str = Field(description="fingerprint")
    samples: int = Field(description="in the shard")
    rows: int
    rejected: dict[str, int] = Field(default_factory=dict, description="samples by reason")
    filtered: int = Field(0, description="samples that the filter did not select")
    members: tuple[str, ...] = Field((), description="names of a slice of a plain folder")
    files: dict[str, FileRecord]

    @property
    def fingerprint(self) -> str:
        """16 hex digits that name its rows and vectors."""
        return digest({name: file.sha256 for name, file in self.files.items()})[:16]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        found = self.rows + sum(self.rejected.values()) + self.filtered
        if found != self.samples:
            raise ValueError(f"{found} samples are accounted for, {self.samples} were there")
        return self


class EmbeddingsFolder:
    """File names of an embeddings folder, in clip-retrieval's layout."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.manifest = root / "embeddings.json"
        self.lock = root / f".lock{storage.STAGING_SUFFIX}"  # no content

    def vectors(self, part: int, modality: Modality) -> Path:
        """float16 unit vectors of one part."""
        prefix = "img_emb" if modality == "image" else "text_emb"
        return self.root / prefix / f"{prefix}_{part:05d}.npy"

    def metadata(self, part: int) -> Path:
        """Keys, captions and input columns; row i belongs to vector i."""
        return self.root / "metadata" / f"metadata_{part:05d}.parquet"

    def rejected(self, part: int) -> Path:
        """One JSON object a line: key and reason; absent where nothing was rejected."""
        return self.root / "rejected" / f"rejected_{part:05d}.jsonl"

    def done(self, part: int) -> Path:
        """Done-marker of one part."""
        return self.root / "done" / f"{part:05d}.json"

    def clear(self, part: int) -> None:
        """Remove what a killed attempt left of a part that is not finished."""
        left = (self.vectors(part, "image"), self.vectors(part, "text"), self.metadata(part))
        for path in (*left, self.rejected(part)):
            path.unlink(missing_ok=True)

    def read(self) -> EmbeddingsManifest:
        """Read `embeddings.json`.

        Raises:
            InputError: when the folder is no embeddings folder.
        """
        if not self.manifest.is_file():
            raise InputError(
                f"{self.root}: no embeddings folder (it has no {self.manifest.name}); "
                "`clipray embed --output` writes one"
            )
        return read_json(EmbeddingsManifest, self.manifest)

    def part(self, number: int) -> PartManifest | None:
        """One part, if it is finished."""
        path = self.done(number)
        return read_json(PartManifest, path) if path.is_file() else None

    def markers(self) -> Iterator[tuple[int, PartManifest]]:
        """The finished parts, in the order of their numbers."""
        paths = (path for path in (self.root / "done").glob("*.json") if path.stem.isdecimal())
        for path in sorted(paths, key=lambda path: int(path.stem)):
            yield int(path.stem), read_json(PartManifest, path)

    def parts(self) -> dict[int, PartManifest]:
        """The finished parts by number."""
        return dict(self.markers())


@dataclass(frozen=True)
class Parts:
    """Parts of one modality, by number; those without a row have no files and are not among them.

    Attributes:
        unfinished: shards that were begun with and are not embedded.
    """

    root: Path
    manifest: EmbeddingsManifest
    modality: Modality
    parts: Mapping[int, PartManifest]
    unfinished: int = 0

    @classmethod
    def open(cls, root: Path, modality: Modality | None = None) -> Self:
        """Find the finished parts; images where `modality` is not given and there are any.

        Raises:
            InputError: no embeddings folder, no finished row, or none of that modality.
        """
        folder = EmbeddingsFolder(root)
        manifest, parts = folder.read(), folder.parts()
        chosen = modality or manifest.modalities[0]
        if chosen not in manifest.modalities:
            raise InputError(
                f"{root}: holds {manifest.settings.modality} embeddings, none of {chosen}"
            )
        filled = {number: part for number, part in parts.items() if part.rows}
        if not filled:
            whole = parts and len(parts) >= len(manifest.shards)
            why = "all samples were rejected or filtered out" if whole else "run `clipray embed`"
            raise InputError(f"{root}: no finished part with rows; {why}")
        return cls(root, manifest, chosen, filled, len(manifest.shards) - len(parts))

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(self.parts))

    def __len__(self) -> int:
        return len(self.parts)

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self.manifest.model.dim

    @property
    def rows(self) -> int:
        """Rows of all parts."""
        return sum(part.rows for part in self.parts.values())

    def fingerprints(self) -> dict[int, str]:
        """What names each part by its content."""
        return {number: self.parts[number].fingerprint for number in self}

    def only(self, numbers: Iterable[int]) -> Self:
        """Some of the parts."""
        return replace(self, parts={number: self.parts[number] for number in numbers})

    def vectors(self, number: int) -> Halves:
        """(rows, dim) float16 unit vectors of one part.

        Raises:
            DamagedError: when the file is missing or changed, or holds something else.
        """
        path = EmbeddingsFolder(self.root).vectors(number, self.modality)
        self._verify(number, path)
        return _halves(path, (self.parts[number].rows, self.dim))

    def table(self, number: int, columns: list[str] | None = None) -> pa.Table:
        """Rows of one part; row i belongs to vector i.

        Raises:
            DamagedError: when the file is missing or changed.
        """
        path = EmbeddingsFolder(self.root).metadata(number)
        self._verify(number, path)
        return pq.read_table(path, columns=columns)

    def schema(self, number: int) -> pa.Schema:
        """Columns of one part."""
        return pq.read_schema(EmbeddingsFolder(self.root).metadata(number))

    def keys(self, number: int) -> list[str]:
        """Keys of one part."""
        keys: list[str] = self.table(number, [KEY_COLUMN]).column(0).to_pylist()
        return keys

    def _verify(self, number: int, path: Path) -> None:
        record = self.parts[number].files.get(str(path.relative_to(self.root)))
        if record is None:
            raise DamagedError(f"{path}: its done-marker does not name it; embed the shard again")
        record.verify(path)


def _halves(path: Path, shape: tuple[int, int]) -> Halves:
    wanted = f"{path}: expected float16 of shape {shape}"
    try:  # mapped at first, because a header may promise more than memory holds
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # noqa: BLE001  numpy has Python parse the header
        raise DamagedError(f"{wanted}, found no array ({error})") from None
    kind = f"{found.dtype} of {found.shape}" if isinstance(found, np.ndarray) else "an archive"
    if kind != f"float16 of {shape}":
        raise DamagedError(f"{wanted}, found {kind}")
    return np.array(found)
