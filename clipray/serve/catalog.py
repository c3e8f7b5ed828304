"""What a service holds, and what it replies: values that the ingress and the HTTP API share."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipray.config import Config
from clipray.errors import NotFoundError, QueryError
from clipray.index.manifest import IndexManifest
from clipray.index.store import opened
from clipray.index.table import read_columns
from clipray.manifest import Modality, ModelIdentity, ModelSource
from clipray.matches import Coverage, Matches

Vector = NDArray[np.float32]


class Reply(Config):
    """The answer to one query.

    Attributes:
        coverage: how much of the index was searched.
        version: of the index.
        took_ms: milliseconds of encoding, of searching, and in total.
    """

    matches: Matches
    coverage: Coverage
    version: int
    took_ms: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """As the HTTP API gives it."""
        return {
            "matches": [match.to_json() for match in self.matches],
            "coverage": self.coverage.to_json(),
            "degraded": self.coverage.degraded,
            "version": self.version,
            "took_ms": {name: round(value, 3) for name, value in self.took_ms.items()},
        }


class ServedFolder(Config):
    """One version of one index folder, as it is served.

    Attributes:
        name: of the index; one with images and one with texts may share it.
        root: its folder, or the URI of a published one.
        shard_rows: rows by shard.
    """

    name: str
    modality: Modality
    root: Path | str
    version: int
    method: str
    shard_rows: tuple[int, ...]
    columns: tuple[str, ...]

    @classmethod
    def open(cls, name: str, root: Path | str) -> Self:
        """The newest version of an index folder."""
        folder, manifest, _ = opened(root, verify=False)
        segments = (folder.segment(segment.id) for segment in manifest.segments)
        columns = {column for path in segments for column in read_columns(path)}
        return cls(
            name=name,
            modality=manifest.modality,
            root=root,
            version=manifest.version,
            method=manifest.method,
            shard_rows=tuple(shard.rows for shard in manifest.shards),
            columns=tuple(sorted(columns)),
        )

    @property
    def slot(self) -> str:
        """Its name inside the service."""
        return f"{self.name}/{self.modality}"

    def read(self) -> IndexManifest:
        """The manifest of this version."""
        return opened(self.root, self.version, verify=False).manifest

    def coverage(self, missing: Iterable[int]) -> Coverage:
        """What was searched when these shards did not answer."""
        lost = tuple(sorted(missing))
        total = len(self.shard_rows)
        rows = sum(self.shard_rows)
        searched = rows - sum(self.shard_rows[shard] for shard in lost)
        return Coverage(total, total - len(lost), searched, rows, lost)


class Catalog(Config):
    """All index folders of a service; they share one model."""

    model: ModelIdentity
    source: ModelSource
    folders: tuple[ServedFolder, ...]

    def find(self, index: str | None, modality: Modality) -> ServedFolder:
        """The folder that a query means.

        Raises:
            NotFoundError: no such index.
            QueryError: several are served and none is named.
        """
        names = {folder.name for folder in self.folders}
        if index is None and len(names) > 1:
            raise QueryError(f"several indices are served, name one: {', '.join(sorted(names))}")
        wanted = index or next(iter(names))
        found = [f for f in self.folders if f.name == wanted and f.modality == modality]
        if not found:
            served = ", ".join(folder.slot for folder in self.folders)
            raise NotFoundError(f"no index {wanted}/{modality} is served; there are: {served}")
        return found[0]

    def named(self, index: str) -> list[ServedFolder]:
        """All folders of an index.

        Raises:
            NotFoundError: no such index.
        """
        found = [folder for folder in self.folders if folder.name == index]
        if not found:
            raise NotFoundError(f"no index '{index}' is served")
        return found

    def to_json(self) -> dict[str, Any]:
        """As `GET /indices` gives it."""
        names = dict.fromkeys(folder.name for folder in self.folders)
        return {
            "indices": [{"name": name, "modalities": self._modalities(name)} for name in names],
            "model": str(self.model),
            "dim": self.model.dim,
        }

    def _modalities(self, name: str) -> dict[str, Any]:
        return {
            folder.modality: {
                "rows": sum(folder.shard_rows),
                "version": folder.version,
                "shards": len(folder.shard_rows),
                "method": folder.method,
                "columns": list(folder.columns),
            }
            for folder in self.named(name)
        }
