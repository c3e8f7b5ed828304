"""One version of an index, opened in this process."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipray import filters
from clipray.errors import DamagedError, NotFoundError, QueryError
from clipray.index.manifest import IndexManifest, SearchSettings
from clipray.index.shard import Shard, Wanted, search_shards
from clipray.index.store import opened
from clipray.index.table import OWN_COLUMNS
from clipray.matches import Coverage, Matches

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


class Index:
    """One version of an index; later versions do not change what it answers.

    Args:
        manifest: of the version.
        shards: open shards by number; one that is missing could not be opened.
    """

    def __init__(self, manifest: IndexManifest, shards: Mapping[int, Shard]) -> None:
        self.manifest = manifest
        self._shards = dict(shards)

    @classmethod
    def open(
        cls,
        uri: str | Path,
        version: int | None = None,
        *,
        verify: bool = True,
        partial: bool = False,
    ) -> Self:
        """Open a version, the newest by default.

        Vectors and rows are mapped, not read, so opening costs little but for the checksums.

        Args:
            uri: the index folder, or the URI of a published one, whose files are kept in a folder
                on this machine; see `store`.
            version: its number.
            verify: compare all files with their checksums, which reads them once.
            partial: leave damaged shards out; `coverage` tells which.

        Raises:
            InputError: no such index or version, or a store that cannot be read.
            DamagedError: naming the file that is missing, cut or changed.
        """
        folder, manifest, verified = opened(uri, version, verify=verify, partial=partial)
        verify = verify and not verified
        shards: dict[int, Shard] = {}
        for number, record in enumerate(manifest.shards):
            try:
                shards[number] = Shard.open(folder, record, manifest.settings, verify=verify)
            except DamagedError as error:
                if version is None and folder.passed(manifest.version):
                    return cls.open(uri, verify=verify, partial=partial)
                home = f" (it belongs on the disk of node {record.node})" if record.node else ""
                if not partial:
                    raise DamagedError(f"{error}{home}") from None
                log.warning("shard %d is left out: %s%s", number, error, home)
        if not shards:
            raise DamagedError(f"{folder.root}: none of its {len(manifest.shards)} shards is whole")
        return cls(manifest, shards)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards.values())

    @property
    def coverage(self) -> Coverage:
        """How much of the index is searched."""
        total = len(self.manifest.shards)
        missing = tuple(sorted(set(range(total)) - set(self._shards)))
        return Coverage(total, len(self._shards), len(self), self.manifest.rows, missing)

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The open shards."""
        return tuple(self._shards.values())

    def tuned(self, settings: SearchSettings) -> None:
        """Look this hard from now on, where the search is approximate."""
        for shard in self.shards:
            shard.tuned(settings)

    def find(self, key: str) -> Vectors:
        """The (dim,) float32 vector of a key.

        Raises:
            NotFoundError: when no row has it.
        """
        found = (shard.find(key) for shard in self.shards)
        vector = next((vector for vector in found if vector is not None), None)
        if vector is None:
            raise NotFoundError(f"key '{key}': no row of the index has it")
        return vector

    def search(
        self,
        queries: Vectors,
        k: int = 10,
        threshold: float | None = None,
        filter: Mapping[str, Any] | None = None,  # noqa: A002  the name that it has everywhere
        columns: Sequence[str] = (),
        *,
        vectors: bool = False,
        exact: bool = False,
    ) -> list[Matches]:
        """Find the best `k` rows for each query.

        Args:
            queries: (m, dim) float32; scaled to unit length here.
            k: at most this many matches each.
            threshold: smallest cosine that is kept.
            filter: which rows count, by their metadata: `{"width": {"$gte": 256}}`.
            columns: metadata to return; see `columns`.
            vectors: return the rows' vectors as well, (dim,) float32.
            exact: scan all rows, whatever the method.

        Raises:
            QueryError: a wrong shape, dimension, filter or column, or a vector that points nowhere.
        """
        units = unit_queries(queries, self.manifest.model.dim)
        if columns:
            require_columns(columns, self.columns)
        checked = None if filter is None else check_filter(filter, self.columns)
        if k < 1:
            raise QueryError(f"k: {k} matches asked for; give at least 1")
        wanted = Wanted(k, threshold, checked, tuple(columns), vectors, exact)
        return search_shards(self.shards, units, wanted)

    @property
    def columns(self) -> set[str]:
        """Names of the metadata columns."""
        return {name for shard in self.shards for name in shard.columns}

    def column(self, name: str) -> dict[str, Any]:
        """One metadata column of all rows, by key."""
        return {key: value for shard in self.shards for key, value in shard.column(name)}


def unit_queries(queries: NDArray[np.floating[Any]], dim: int) -> Vectors:
    """Check (m, dim) vectors and scale them to unit length, as float32.

    Raises:
        QueryError: a wrong shape, or a vector that points nowhere.
    """
    wide = np.asarray(queries, dtype=np.float64)
    if wide.ndim != 2 or wide.shape[1] != dim:
        raise QueryError(f"query of shape {wide.shape}: the index holds {dim} dimensions")
    norms = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    if not np.isfinite(norms).all() or (norms < 1e-6).any():
        raise QueryError("a query vector is zero or not finite; it points nowhere")
    return np.ascontiguousarray(wide / norms, dtype=np.float32)


def check_filter(tree: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """Refuse what is no metadata filter, and a filter on columns that no row has.

    A misspelt column would select nothing, or with `$ne` everything.

    Raises:
        QueryError: saying what was found and what there is.
    """
    try:
        checked = filters.check(dict(tree))
    except ValueError as error:
        raise QueryError(f"filter: {error}") from None
    if known:  # of an index without a row no column is known
        require_columns(filters.columns_of(checked), known | set(OWN_COLUMNS))
    return checked


def require_columns(wanted: Iterable[str], known: set[str]) -> None:
    """Refuse columns that no row has.

    Raises:
        QueryError: naming them, and those that there are.
    """
    unknown = sorted(set(wanted) - known - {"caption"})
    if unknown:
        raise QueryError(f"no column {', '.join(unknown)}; there are {', '.join(sorted(known))}")
