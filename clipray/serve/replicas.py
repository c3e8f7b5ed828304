"""The deployment that searches: some shards of every index in one process.

A group answers for all its shards at once, because a call to a replica costs more than a search.
Neither torch nor a model is imported here.
"""

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clipray import nodes
from clipray.errors import ClipRayError
from clipray.index.store import read
from clipray.serve.catalog import ServedFolder
from clipray.serve.groups import GroupSpec
from clipray.serve.holding import Holding, Job, Part, Told
from clipray.serve.wire import Address, Exchange

log = logging.getLogger(__name__)

LINGER_S = 30.0  # how long a version stays open after a later one was opened

Vectors = NDArray[np.float32]


class ShardGroup:
    """A replica of one group.

    Args:
        spec: what it holds.
        folders: versions that were served when the service was made; where this node sees a later
            one, that is opened instead.
        threads: of Faiss for one call.
        verify: compare files with their checksums.
        inside: address to listen on for the ingress.
    """

    def __init__(
        self,
        spec: GroupSpec,
        folders: Sequence[ServedFolder],
        threads: int,
        *,
        verify: bool,
        inside: str | None = None,
    ) -> None:
        faiss.omp_set_num_threads(threads)
        self._holding = Holding(spec.shards, nodes.local_root, verify=verify)
        for folder in folders:
            self._holding.open(_newest(folder))
        host = inside or nodes.own_address()
        self._exchange = Exchange(self, ("search", "find", "rows"), host)

    async def address(self) -> Address:
        """Where it listens for the ingress."""
        return await self._exchange.address()

    async def open(self, folder: ServedFolder) -> Told:
        """Open a version beside what is open, and let go of earlier ones after a while."""
        told = await asyncio.to_thread(self._holding.open, folder)
        loop = asyncio.get_running_loop()
        loop.call_later(LINGER_S, self._holding.keep, folder.slot, folder.version)
        return told

    async def search(self, jobs: Sequence[Job]) -> list[Part | ClipRayError]:
        """Answer several jobs; one that fails does not touch the others."""
        return await asyncio.to_thread(lambda: [self._answer(job) for job in jobs])

    async def find(self, slot: str, version: int, key: str) -> Vectors | None:
        """The vector of a key, if it is here."""
        return self._holding.find(slot, version, key)

    async def rows(self, slot: str, version: int, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Id, key and all columns of the rows that are here, by id."""
        return self._holding.rows(slot, version, ids)

    def _answer(self, job: Job) -> Part | ClipRayError:
        try:
            return self._holding.search(job)
        except ClipRayError as error:
            return error


def _newest(folder: ServedFolder) -> ServedFolder:
    """The version that a replica begins with, which may be started long after the service was."""
    try:
        manifest = read(folder.root)
    except (ClipRayError, OSError) as error:  # the manifest need not be seen from this node
        log.info("%s: version %d as deployed (%s)", folder.slot, folder.version, error)
        return folder
    same = manifest.modality == folder.modality
    if not same or manifest.version <= folder.version:
        return folder
    return ServedFolder.of(folder.name, folder.root, manifest)
