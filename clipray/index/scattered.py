"""One version of an index whose shards lie on the disks of several nodes, searched where they lie.

For single queries: every search opens the shards anew. A service keeps them open.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clipray.errors import NotFoundError
from clipray.index.manifest import IndexFolder, IndexManifest
from clipray.index.reader import Index, Vectors
from clipray.index.shard import Shard, merge_batches
from clipray.index.workers import Workers, in_order
from clipray.matches import Matches


class ScatteredIndex:
    """Answers as an `Index` does that has all the files.

    Args:
        manifest: of the version.
        workers: run on the nodes.
        verify: compare the files with their checksums.
    """

    def __init__(self, manifest: IndexManifest, workers: Workers, *, verify: bool = True) -> None:
        self.manifest = manifest
        self._workers, self._verify = workers, verify

    def find(self, key: str) -> Vectors:
        """The (dim,) float32 vector of a key.

        Raises:
            NotFoundError: when no row has it.
            UnavailableError: a node is not alive.
        """
        found: list[Vectors | None] = self._everywhere(find_there, key)
        vector = next((vector for vector in found if vector is not None), None)
        if vector is None:
            raise NotFoundError(f"key '{key}': no row of the index has it")
        return vector

    def search(self, queries: Vectors, k: int, *how: Any, vectors: bool = False) -> list[Matches]:
        """Find the best `k` rows for each query; arguments as for `Index.search`.

        Raises:
            QueryError: as there.
            UnavailableError: a node is not alive.
            DamagedError: a file on a node is missing, cut or changed.
        """
        return merge_batches(self._everywhere(search_there, (queries, k, *how, vectors)), k)

    def _everywhere(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What a function returns on each node that has shards."""
        homes = sorted({shard.node for shard in self.manifest.shards}, key=str)
        calls = [(self.manifest, home, self._verify, *arguments) for home in homes]
        return [done.result for done in in_order(self._workers.run(function, calls, homes))]


def search_there(
    root: Path,
    manifest: IndexManifest,
    home: str | None,
    verify: bool,  # noqa: FBT001  calls travel as tuples
    asked: Sequence[Any],
) -> list[Matches]:
    """What the shards of one node find."""
    *how, vectors = asked
    return _part(root, manifest, home, verify=verify).search(*how, vectors=vectors)


def find_there(
    root: Path,
    manifest: IndexManifest,
    home: str | None,
    verify: bool,  # noqa: FBT001  calls travel as tuples
    key: str,
) -> Vectors | None:
    """The vector of a key, if a shard of this node has it."""
    try:
        return _part(root, manifest, home, verify=verify).find(key)
    except NotFoundError:
        return None


def _part(root: Path, manifest: IndexManifest, home: str | None, *, verify: bool) -> Index:
    folder = IndexFolder(root)
    records = [(n, shard) for n, shard in enumerate(manifest.shards) if shard.node == home]
    opened = {
        n: Shard.open(folder, shard, manifest.settings, verify=verify) for n, shard in records
    }
    return Index(manifest, opened)
