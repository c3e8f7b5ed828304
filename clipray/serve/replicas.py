"""The deployment that searches: some shards of every index in one process.

A group answers for all its shards at once, because a call to a replica costs more than a search.
Neither torch nor a model is imported here.
"""

import asyncio
import logging
from collections.abc import Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from clipray import nodes
from clipray.errors import ClipRayError
from clipray.index.store import read
from clipray.serve.catalog import Piece, ServedFolder
from clipray.serve.groups import GroupSpec
from clipray.serve.holding import Holding, Job, Part, Told
from clipray.serve.wire import Address, CallServer

log = logging.getLogger(__name__)

LINGER_S = 30.0  # how long a version stays open after a later one is served

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
        host = inside or nodes.own_address()
        self._server = CallServer(self, ("search", "find", "rows"), host)
        # Opening takes long and waits for other openings; it must not take the threads of searches.
        self._upkeep = ThreadPoolExecutor(1, "upkeep")
        faiss.omp_set_num_threads(threads)
        self._holding = Holding(spec.shards, nodes.local_root, verify=verify)
        for folder in folders:
            self._holding.open(_newest(folder))

    def __del__(self) -> Coroutine[Any, Any, None] | None:
        """Ray calls and awaits this before it ends the process."""
        return self._server.leave()

    async def address(self) -> Address:
        """Where it listens for the ingress."""
        return await self._server.address()

    async def open(self, folder: ServedFolder) -> Told:
        """Open a version beside what is open."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._upkeep, self._holding.open, folder)

    async def retire(self, place: str, version: int) -> None:
        """Let go of what is older than a version after a while, when no query needs it any more."""
        loop = asyncio.get_running_loop()
        loop.call_later(LINGER_S, self._upkeep.submit, self._holding.keep, place, version)

    async def search(self, jobs: Sequence[Job]) -> list[Part | ClipRayError]:
        """Answer several jobs; one that fails does not touch the others."""
        return await asyncio.to_thread(lambda: [self._answer(job) for job in jobs])

    async def find(self, piece: Piece, key: str) -> Vectors | None:
        """The vector of a key, if it is here."""
        return self._holding.find(piece, key)

    async def rows(self, piece: Piece, ids: Sequence[int]) -> dict[int, dict[str, Any]]:
        """Id, key and all columns of the rows that are here, by id."""
        return self._holding.rows(piece, ids)

    def _answer(self, job: Job) -> Part | ClipRayError:
        try:
            return self._holding.search(job)
        except ClipRayError as error:
            return error
        except Exception as error:
            log.exception("%s: a search failed", job.piece)
            return ClipRayError(f"{job.piece}: a search failed ({error!r})")


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
