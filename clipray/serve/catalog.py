"""What a service holds, and what it replies: values that the ingress and the HTTP API share."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from clipray.config import Config
from clipray.errors import NotFoundError, QueryError
from clipray.index.manifest import IndexManifest, Placement, SearchSettings, ShardRecord
from clipray.manifest import Modality, ModelIdentity, ModelSource
from clipray.matches import Coverage, Matches


class Reply(Config):
    """The answer to one query.

    Attributes:
        coverage: how much of the index was searched.
        version: of the index.
        took_ms: milliseconds by stage, and in total.
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


@dataclass(frozen=True, slots=True)
class Piece:
    """Some shards of one version of a folder, as a group is asked for them.

    While a service is deployed anew, groups that were made for another service answer as well: of
    another number of groups, or with another folder in the same slot.

    Attributes:
        place: the folder.
        shards: their numbers.
    """

    place: str
    version: int
    shards: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.place}, version {self.version}"


class ServedFolder(Config):
    """One version of one index folder, as it is served.

    Attributes:
        name: of the index; one with images and one with texts may share it.
        root: its folder, or the URI of a published one.
        shards: what each is made of.
        columns: metadata columns, sorted; empty until those who hold the shards have told.
    """

    name: str
    modality: Modality
    root: Path | str
    version: int
    method: str
    placement: Placement
    settings: SearchSettings
    shards: tuple[ShardRecord, ...]
    columns: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str, root: Path | str, manifest: IndexManifest) -> Self:
        """A version that has been read."""
        return cls(
            name=name,
            modality=manifest.modality,
            root=root,
            version=manifest.version,
            method=manifest.method,
            placement=manifest.placement,
            settings=manifest.settings,
            shards=manifest.shards,
        )

    @property
    def slot(self) -> str:
        """Its name inside the service."""
        return f"{self.name}/{self.modality}"

    @property
    def place(self) -> str:
        """Its name among all folders that any service ever had in this slot."""
        return f"{self.slot} at {self.root}"

    def piece(self, shards: Sequence[int]) -> Piece:
        """Some of its shards, by number."""
        return Piece(self.place, self.version, tuple(shards))

    @cached_property
    def shard_rows(self) -> tuple[int, ...]:
        """Live rows by shard."""
        return tuple(shard.rows for shard in self.shards)

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

    def named(self, index: str | None) -> list[ServedFolder]:
        """All folders of an index, of the first one by default.

        Raises:
            NotFoundError: no such index.
        """
        index = index or self.folders[0].name
        found = [folder for folder in self.folders if folder.name == index]
        if not found:
            raise NotFoundError(f"no index '{index}' is served")
        return found

    def with_folders(self, changed: Iterable[ServedFolder]) -> Self:
        """With other versions of some folders."""
        by_slot = {folder.slot: folder for folder in changed}
        folders = tuple(by_slot.get(folder.slot, folder) for folder in self.folders)
        return self.model_copy(update={"folders": folders})

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
