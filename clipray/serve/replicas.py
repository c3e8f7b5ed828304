"""The deployment behind the ingress that searches: a group of shards in one process.

A group answers for all its shards at once, because a call to a replica costs more than a search.
Neither torch nor a model is imported here.
"""

from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clipray.config import Config
from clipray.index.shard import Shard, Wanted, search_shards
from clipray.index.store import opened
from clipray.matches import Matches
from clipray.serve.catalog import ServedFolder

Vectors = NDArray[np.float32]


class GroupSpec(Config):
    """The shards that one group opens: shard numbers by slot."""

    folders: tuple[ServedFolder, ...]
    shards: dict[str, tuple[int, ...]]


def plan_groups(folders: Sequence[ServedFolder], groups: int) -> list[GroupSpec]:
    """Deal the shards of every folder out to the groups; no group is left without a shard."""
    most = max(len(folder.shard_rows) for folder in folders)
    count = min(groups, most)
    return [
        GroupSpec(
            folders=tuple(folders),
            shards={f.slot: tuple(range(g, len(f.shard_rows), count)) for f in folders},
        )
        for g in range(count)
    ]


class ShardGroup:
    """A replica that holds some shards of every folder."""

    def __init__(self, spec: GroupSpec, threads: int = 1) -> None:
        faiss.omp_set_num_threads(threads)
        self._shards = {f.slot: _open(f, spec.shards[f.slot]) for f in spec.folders}
        self._versions = {folder.slot: folder.version for folder in spec.folders}

    def search(self, slot: str, queries: Vectors, wanted: Wanted) -> tuple[list[Matches], int]:
        """The best rows for each (m, dim) float32 unit vector, and the version."""
        return search_shards(self._shards[slot], queries, wanted), self._versions[slot]

    def find(self, slot: str, key: str) -> Vectors | None:
        """The vector of a key, if it is here."""
        found = (shard.find(key) for shard in self._shards[slot])
        return next((vector for vector in found if vector is not None), None)

    def row(self, slot: str, row_id: int) -> dict[str, Any] | None:
        """Key and all columns of a row, if it is here."""
        found = (shard.row(row_id) for shard in self._shards[slot])
        return next((row for row in found if row is not None), None)


def _open(folder: ServedFolder, numbers: Sequence[int]) -> list[Shard]:
    index, manifest, _ = opened(folder.root, folder.version, verify=False)
    return [Shard.open(index, manifest.shards[number], manifest.settings) for number in numbers]
