"""What one process of a group holds: its shards of the versions that are served.

A version is opened beside the one before it, so that queries of both are answered while the
service goes over from one to the other. Ray is not known here.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray.errors import ClipRayError, DamagedError, StaleError
from clipray.index.manifest import IndexFolder, ShardRecord
from clipray.index.shard import Shard, Wanted, search_shards
from clipray.index.store import opened
from clipray.matches import Matches
from clipray.serve.catalog import Piece, ServedFolder

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
LocalRoot = Callable[[Path], Path]


@dataclass(frozen=True, slots=True)
class Job:
    """Queries that some shards answer in the same way.

    Attributes:
        queries: (m, dim) float32 unit vectors.
    """

    piece: Piece
    queries: Vectors
    wanted: Wanted


@dataclass(frozen=True, slots=True)
class Part:
    """What a group found.

    Attributes:
        found: for each query of the job.
        lost: numbers of shards that are not open here.
    """

    found: list[Matches]
    lost: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Told:
    """What a group says of a version that it opened.

    Attributes:
        columns: metadata columns of its shards.
        lost: why shards could not be opened, by number.
    """

    columns: tuple[str, ...]
    lost: dict[int, str]


@dataclass(frozen=True, slots=True)
class _Held:
    version: int
    shards: dict[int, Shard]
    lost: dict[int, str]

    @property
    def told(self) -> Told:
        columns = {name for shard in self.shards.values() for name in shard.columns}
        return Told(tuple(sorted(columns)), self.lost)


class Holding:
    """Open shards, by folder and version; any number of threads may use them.

    Args:
        shards: numbers of the shards of a folder that this process holds.
        verify: compare files with their checksums when they are opened first.
        local_root: where this node keeps what it holds itself of an index folder.
    """

    def __init__(
        self,
        shards: Callable[[ServedFolder], Sequence[int]],
        local_root: LocalRoot,
        *,
        verify: bool = True,
    ) -> None:
        self._numbers = shards
        self._local_root = local_root
        self._verify = verify
        self._held: dict[str, list[_Held]] = {}  # the newest last
        self._verified: set[Path] = set()
        self._opening = Lock()

    def open(self, folder: ServedFolder) -> Told:
        """Open a version unless it is open; damaged shards are left out, told and tried again."""
        with self._opening:
            held = self._find(folder.place, folder.version)
            if held is None or held.lost:
                others = [h for h in self._held.get(folder.place, []) if h is not held]
                held = self._open(folder)
                self._held[folder.place] = [*others, held]
        return held.told

    def keep(self, place: str, version: int) -> None:
        """Let go of all versions of a folder but this one and later ones."""
        with self._opening:
            held = self._held.get(place, ())
            self._held[place] = [one for one in held if one.version >= version]

    def search(self, job: Job) -> Part:
        """Answer the queries of a job.

        Raises:
            StaleError: its version is not open here.
        """
        shards = self._require(job.piece).shards
        there = [shards[number] for number in job.piece.shards if number in shards]
        lost = tuple(number for number in job.piece.shards if number not in shards)
        return Part(search_shards(there, job.queries, job.wanted), lost)

    def find(self, piece: Piece, key: str) -> Vectors | None:
        """The vector of a key, if it is here.

        Raises:
            StaleError: not all of the shards were dealt out to this process.
        """
        found = (shard.find(key) for shard in self._whole(piece))
        return next((vector for vector in found if vector is not None), None)

    def rows(self, piece: Piece, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Id, key and all columns of the rows that are here, by id.

        Raises:
            StaleError: not all of the shards were dealt out to this process.
        """
        shards = self._whole(piece)
        found = ((row_id, shard.row(row_id)) for row_id in ids for shard in shards)
        return {row_id: row for row_id, row in found if row is not None}

    def _find(self, place: str, version: int) -> _Held | None:
        held = (held for held in self._held.get(place, []) if held.version == version)
        return next(held, None)

    def _require(self, piece: Piece) -> _Held:
        held = self._find(piece.place, piece.version)
        if held is None:
            raise StaleError(f"{piece} is not open here")
        return held

    def _whole(self, piece: Piece) -> list[Shard]:
        """The open ones of the shards, which must be this process's."""
        held = self._require(piece)
        if elsewhere := set(piece.shards) - held.shards.keys() - held.lost.keys():
            raise StaleError(f"{piece}: shards {sorted(elsewhere)} are not here")
        return [held.shards[number] for number in piece.shards if number in held.shards]

    def _open(self, folder: ServedFolder) -> _Held:
        shards: dict[int, Shard] = {}
        lost: dict[int, str] = {}
        numbers = self._numbers(folder)
        try:
            root, verified = self._root(folder, numbers)
        except ClipRayError as error:
            return _Held(folder.version, {}, dict.fromkeys(numbers, str(error)))
        for number in numbers:
            try:
                record = folder.shards[number]
                if self._verify:
                    self._verify_files(root, record, verified=verified)
                shards[number] = Shard.open(root, record, folder.settings, verify=False)
            except DamagedError as error:
                log.error("%s: shard %d is left out: %s", folder.slot, number, error)
                lost[number] = str(error)
        return _Held(folder.version, shards, lost)

    def _root(self, folder: ServedFolder, numbers: Sequence[int]) -> tuple[IndexFolder, bool]:
        """The folder on this machine with the files of some shards, and whether it is verified."""
        if isinstance(folder.root, Path):
            local = folder.placement == "node"
            return IndexFolder(self._local_root(folder.root) if local else folder.root), False
        found = opened(
            folder.root,
            folder.version,
            verify=self._verify,
            partial=True,
            shards=numbers,
            known=self._verified,
        )
        return found.folder, found.verified

    def _verify_files(self, root: IndexFolder, shard: ShardRecord, *, verified: bool) -> None:
        """Compare the files that this process has not compared yet, unless that has been done."""
        for path, file in (file for segment in shard.segments for file in root.files(segment)):
            if path not in self._verified:
                if not verified:
                    file.verify(path)
                self._verified.add(path)
