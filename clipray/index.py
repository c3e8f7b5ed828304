"""The index: built by Ray tasks, one a shard, and opened in process.

A build reads the parts of an embeddings folder where they lie, no rows are shuffled between
shards, and the commit of the manifest is what makes the new version visible.
"""

import logging
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import ray
from numpy.typing import NDArray
from pydantic import Field
from tqdm import tqdm

from clipray import cluster, storage
from clipray.builder import ShardPlan, build_shard, plan_shards
from clipray.config import Config, to_yaml
from clipray.embeddings import Parts
from clipray.errors import InputError, NotFoundError, OutputError, QueryError
from clipray.manifest import IndexFolder, IndexManifest, Modality, ShardRecord
from clipray.matches import Coverage, Matches
from clipray.report import DONE, DONE_WITH_REJECTS, Report
from clipray.shard import Shard, merge_batches

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


class IndexBuildConfig(Config):
    """Build an index over an embeddings folder."""

    embeddings: Path = Field(description="folder that `clipray embed` wrote")
    index: Path = Field(description="index folder to write; must not hold an index yet")
    modality: Modality | None = Field(
        None, description="image or text; by default images where there are any"
    )
    method: str = Field(
        "auto", description="auto, Flat, HNSW32, IVF, or a string of Faiss's index_factory"
    )
    shards: int = Field(1, ge=1, description="how many shards")


class BuildReport(Report):
    """What a build made.

    Attributes:
        index: the index folder.
        version: the committed version.
        rows: rows of all shards.
        rejected: rows left out, by reason.
    """

    index: Path
    version: int
    modality: Modality
    method: str
    shards: int
    rows: int
    rejected: dict[str, int]

    @property
    def exit_code(self) -> int:
        """0 when every row is in the index, else 3."""
        return DONE_WITH_REJECTS if self.rejected else DONE

    def summary(self) -> str:
        """One line, and one for each reason."""
        made = f"{self.rows} {self.modality} rows, {self.method}, {self.shards} shards"
        lines = [f"{self.index}: version {self.version}, {made}"]
        lines += [f"rejected {count}: {reason}" for reason, count in sorted(self.rejected.items())]
        return "\n".join(lines)


def build(config: IndexBuildConfig) -> BuildReport:
    """Build all shards and commit version 1.

    Raises:
        InputError: no embeddings, or none of that modality.
        OutputError: the index folder is not empty.
        ConfigError: an unusable method, or more shards than rows.
    """
    parts = Parts.open(config.embeddings.resolve(), config.modality)
    folder = IndexFolder(config.index.resolve())
    _require_free(folder)
    _warn_of_unfinished(parts)
    with cluster.session(cpus=1):
        plans = plan_shards(parts, folder.root, config.method, config.shards)
        log.info("%s over %d rows in %d shards", plans[0].method, parts.rows, len(plans))
        shards, rejected = _build_shards(plans)
    if not any(shard.rows for shard in shards):
        raise InputError(f"{parts.root}: no usable row, all were rejected: {rejected}")
    manifest = IndexManifest(
        version=1,
        model=parts.manifest.model,
        source=parts.manifest.source,
        modality=parts.modality,
        method=plans[0].method,
        codec=plans[0].codec,
        shards=shards,
    )
    folder.commit(manifest)
    storage.write_file(folder.root / "build.yaml", to_yaml(config).encode())
    return BuildReport(
        index=folder.root,
        version=manifest.version,
        modality=manifest.modality,
        method=manifest.method,
        shards=len(shards),
        rows=manifest.rows,
        rejected=rejected,
    )


class Index:
    """One version of an index, opened in this process."""

    def __init__(self, manifest: IndexManifest, shards: Sequence[Shard]) -> None:
        self.manifest = manifest
        self._shards = tuple(shards)

    @classmethod
    def open(cls, uri: str | Path, version: int | None = None) -> Self:
        """Open a version, the newest by default, after verifying its checksums.

        Raises:
            InputError: no such index or version.
            DamagedError: naming the file that is missing, cut or changed.
        """
        folder = IndexFolder(Path(uri))
        manifest = folder.read(version)
        return cls(manifest, [Shard.open(folder, record) for record in manifest.shards])

    def __len__(self) -> int:
        return sum(len(shard) for shard in self._shards)

    @property
    def coverage(self) -> Coverage:
        """All of it: in process there is no partial answer."""
        total = len(self._shards)
        return Coverage(total, total, len(self), self.manifest.rows)

    def find(self, key: str) -> Vectors:
        """The (dim,) float32 vector of a key.

        Raises:
            NotFoundError: when no row has it.
        """
        found = (shard.find(key) for shard in self._shards)
        vector = next((vector for vector in found if vector is not None), None)
        if vector is None:
            raise NotFoundError(f"key '{key}': no row of the index has it")
        return vector

    def search(
        self,
        queries: Vectors,
        k: int = 10,
        threshold: float | None = None,
        columns: Sequence[str] = (),
    ) -> list[Matches]:
        """Find the best `k` rows for each query.

        Args:
            queries: (m, dim) float32; scaled to unit length here.
            k: at most this many matches each.
            threshold: smallest cosine that is kept.
            columns: metadata to return; see `columns`.

        Raises:
            QueryError: a wrong shape or dimension, or a vector that points nowhere.
        """
        units = unit_queries(queries, self.manifest.model.dim)
        require_columns(columns, self.columns)
        found = [shard.search(units, k, threshold, columns) for shard in self._shards]
        return merge_batches(found, k)

    @property
    def columns(self) -> set[str]:
        """Names of the metadata columns."""
        return {name for shard in self._shards for name in shard.columns}

    def column(self, name: str) -> dict[str, Any]:
        """One metadata column of all rows, by key."""
        return {key: value for shard in self._shards for key, value in shard.column(name)}


def unit_queries(queries: NDArray[np.floating[Any]], dim: int) -> Vectors:
    """Check (m, dim) vectors and scale them to unit length, as float32."""
    wide = np.asarray(queries, dtype=np.float64)
    if wide.ndim != 2 or wide.shape[1] != dim:
        raise QueryError(f"query of shape {wide.shape}: the index holds {dim} dimensions")
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if not np.isfinite(norms).all() or (norms < 1e-6).any():
        raise QueryError("a query vector is zero or not finite; it points nowhere")
    return np.ascontiguousarray(wide / norms, dtype=np.float32)


def require_columns(wanted: Iterable[str], known: set[str]) -> None:
    """Refuse columns that no row has."""
    unknown = sorted(set(wanted) - known - {"caption"})
    if unknown:
        raise QueryError(f"no column {', '.join(unknown)}; there are {', '.join(sorted(known))}")


def _warn_of_unfinished(parts: Parts) -> None:
    if parts.unfinished > 0:
        log.warning("%s: %d shards are not embedded and left out", parts.root, parts.unfinished)


def _require_free(folder: IndexFolder) -> None:
    versions = folder.versions()
    if versions:
        raise OutputError(
            f"{folder.root}: holds an index at version {versions[-1]}; choose another"
        )
    ours = {folder.manifests, folder.segment("x").parent, folder.codec("x").parent}
    if folder.root.exists() and not (folder.root.is_dir() and set(folder.root.iterdir()) <= ours):
        raise OutputError(f"{folder.root}: holds something that is no index; choose another folder")
    # What an earlier build left before its commit belongs to no version.
    for leftover in ours - {folder.manifests}:
        shutil.rmtree(leftover, ignore_errors=True)


def _build_shards(plans: Sequence[ShardPlan]) -> tuple[tuple[ShardRecord, ...], dict[str, int]]:
    task = ray.remote(num_cpus=1, max_retries=3)(build_shard)
    pending: dict[Any, int] = {task.remote(plan): i for i, plan in enumerate(plans)}
    built: dict[int, ShardRecord] = {}
    rejected: dict[str, int] = {}
    with tqdm(total=len(plans), unit="shard", desc="index") as bar:
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            record, reasons = ray.get(ready)
            built[pending.pop(ready)] = record
            for reason, count in reasons.items():
                rejected[reason] = rejected.get(reason, 0) + count
            bar.update()
    return tuple(built[i] for i in range(len(plans))), rejected
