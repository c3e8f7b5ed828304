"""How hard an approximate index has to look, measured against exact search.

Recall is measured for two kinds of query: image-like ones, which are rows of the index that must
find the others, and text-like ones. Those are vectors of the other tower where the embeddings have
them; otherwise rows moved by one common direction, which is how CLIP's texts lie beside its images
(the modality gap; Liang et al. 2022, arXiv:2203.02053).
"""

import logging
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipray.embeddings import Parts
from clipray.errors import InputError
from clipray.index.approximate import SCAN_SHARE
from clipray.index.manifest import (
    CurvePoint,
    IndexFolder,
    IndexManifest,
    SearchSettings,
    ShardRecord,
    Tuning,
)
from clipray.index.shard import Shard, Wanted, search_shards
from clipray.index.workers import Workers
from clipray.manifest import Modality
from clipray.matches import Matches

log = logging.getLogger(__name__)

K = 10
QUERIES = 256  # of each kind
MEASURED_ROWS = 2_000_000  # so many are enough; the other shards are like them
GAP = 1.06  # length of the common direction, in lengths of a row
RESCORE = (2, 3, 4, 5, 6, 8, 10, 12, 15, 20, 30, 45, 70, 100)
NO_GAIN = 0.002  # of recall: reaching further does not help any more
EF_SEARCH = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class Queries:
    """Queries of one kind and what exact search finds for them.

    Attributes:
        vectors: (m, dim) float32 unit vectors.
        own: id of the row that a query is, which does not count as found; None for a text.
        truth: the best rows by exact search.
    """

    vectors: Vectors
    own: tuple[int | None, ...]
    truth: tuple[Matches, ...]

    def recall(self, shards: tuple[Shard, ...]) -> tuple[float, float]:
        """Mean recall@10 and its standard error."""
        found = _best(shards, self.vectors, self.own)
        each = [recall_of(some, truth) for some, truth in zip(found, self.truth, strict=True)]
        return float(np.mean(each)), float(np.std(each) / max(1, len(each)) ** 0.5)


def recall_of(found: Matches, truth: Matches) -> float:
    """`Matches.recall`, but of equal rows, as of copies of one image, any is right."""
    if not len(truth):
        return 1.0
    last = truth.items[-1].score
    return sum(match.score >= last for match in found) / len(truth)


def others(found: Sequence[Matches], own: Sequence[int | None], k: int) -> list[Matches]:
    """The best `k` of what was found for each query, the row left out that the query itself is."""
    return [
        Matches(tuple(match for match in matches if match.id != mine)[:k])
        for matches, mine in zip(found, own, strict=True)
    ]


def tune(
    manifest: IndexManifest,
    target: float,
    workers: Workers,
    embeddings: Path | None = None,
) -> IndexManifest:
    """The manifest with the cheapest settings that reach a recall@10.

    Args:
        manifest: committed or not; its files are there.
        target: recall@10 that every kind of query must reach.
        workers: where the shards can be read.
        embeddings: where to find vectors of the other tower.

    Raises:
        MismatchError: embeddings of another model.
        DamagedError: a file that is missing or changed.
    """
    home = manifest.shards[0].node
    near = tuple(shard for shard in manifest.shards if shard.node == home)
    call = (manifest.model_copy(update={"shards": near}), target, embeddings)
    (done,) = workers.run(measure, [call], [home])
    if done.result is None:
        log.info("%s: every row is looked at, so there is nothing to tune", manifest.method)
        return manifest
    settings, tuning = done.result
    if not tuning.reached:
        log.warning("recall %.3f was not reached; the best was %s", target, tuning.curve[-1])
    return manifest.model_copy(update={"settings": settings, "tuning": tuning})


def measure(
    root: Path, manifest: IndexManifest, target: float, embeddings: Path | None
) -> tuple[SearchSettings, Tuning] | None:
    """Settings for the shards of a manifest; None where every row is looked at."""
    folder, records = IndexFolder(root), _some_shards(manifest)
    opened = tuple(Shard.open(folder, shard, manifest.settings, verify=False) for shard in records)
    steps = grid(opened)
    if steps is None or not any(map(len, opened)):
        return None
    rng = np.random.default_rng(0)
    kinds = {
        "image": _rows_as_queries(opened, rng),
        "text": _texts(opened, manifest, embeddings, rng),
    }
    curve = list(_staircase(opened, kinds, steps, target))
    reached = [point for point in curve if point.ms is not None]
    best = min(reached, key=lambda point: point.ms or 0.0) if reached else curve[-1]
    tuning = Tuning(
        target=target,
        reached=bool(reached),
        rows=sum(record.rows for record in records),
        queries={kind: len(queries.own) for kind, queries in kinds.items()},
        curve=tuple(curve),
    )
    return best.settings, tuning


def _staircase(
    shards: tuple[Shard, ...],
    kinds: Mapping[str, Queries],
    steps: tuple[list[SearchSettings], ...],
    target: float,
) -> Iterator[CurvePoint]:
    """Walk along the edge where the target is just reached; the points on it are timed.

    Recall grows with both settings, so from a point that reaches it only a smaller `rescore` is
    interesting, and from one that does not only a larger reach, as long as that helps.
    """
    deepest, before = len(steps[0]) - 1, 0.0
    for row in tqdm(steps, desc="tune", unit="reach"):
        points: dict[int, CurvePoint] = {}

        def reaches(depth: int, row: list[SearchSettings] = row, seen: Any = points) -> bool:
            seen[depth], enough = _measured(shards, kinds, row[depth], target)
            return enough

        found = bisect_left(range(deepest + 1), x=True, key=reaches)
        if found <= deepest:
            cost = _cost(shards, kinds["text"], row[found])
            points[found] = points[found].model_copy(update={"ms": cost})
        yield from (points[depth] for depth in sorted(points))
        best = max(min(point.recall.values()) for point in points.values())
        edged = deepest < len(row) - 1  # some row before has reached the target
        if not found or (found > deepest and edged and best - before < NO_GAIN):
            return
        deepest, before = min(found, deepest), best


def _measured(
    shards: tuple[Shard, ...], kinds: Mapping[str, Queries], settings: SearchSettings, target: float
) -> tuple[CurvePoint, bool]:
    _set(shards, settings)
    measured = {kind: queries.recall(shards) for kind, queries in kinds.items()}
    enough = all(mean - error >= target for mean, error in measured.values())
    recall = {kind: round(mean, 4) for kind, (mean, _) in measured.items()}
    return CurvePoint(settings=settings, recall=recall), enough


def _cost(shards: tuple[Shard, ...], queries: Queries, settings: SearchSettings) -> float:
    """CPU milliseconds of one query, searched alone."""
    _set(shards, settings)
    began = time.process_time()
    for vector in queries.vectors:
        search_shards(shards, vector[None], Wanted(K))
    return 1e3 * (time.process_time() - began) / len(queries.vectors)


def _set(shards: tuple[Shard, ...], settings: SearchSettings) -> None:
    for shard in shards:
        shard.tuned(settings)


def grid(shards: tuple[Shard, ...]) -> tuple[list[SearchSettings], ...] | None:
    """Settings in a grid: rows reach further, within a row more is rescored.

    None where every row is looked at.
    """
    found = (segment.approximate for shard in shards for segment in shard.segments)
    first = next((approximate for approximate in found if approximate is not None), None)
    if first is None:
        return None
    rescore = (1,) if first.settings.rescore == 1 else _worthwhile(shards)
    if first.lists:
        reaches = [{"nprobe": n} for n in _doubling(first.lists)]
    elif first.is_graph:
        reaches = [{"ef_search": ef} for ef in EF_SEARCH]
    else:
        reaches = [{}]
    return tuple([SearchSettings(**reach, rescore=r) for r in rescore] for reach in reaches)


def _worthwhile(shards: tuple[Shard, ...]) -> tuple[int, ...]:
    """Rescoring more than these would become a scan of all rows."""
    rows = max(len(segment.table) for shard in shards for segment in shard.segments)
    return tuple(r for r in RESCORE if r == RESCORE[0] or 2 * K * r <= rows * SCAN_SHARE)


def _doubling(lists: int) -> list[int]:
    steps = [1]
    while steps[-1] < lists:
        steps.append(min(lists, max(steps[-1] + 1, round(steps[-1] * 1.5))))
    return steps


def _some_shards(manifest: IndexManifest) -> list[ShardRecord]:
    chosen: list[ShardRecord] = []
    for shard in manifest.shards:
        if chosen and sum(record.rows for record in chosen) + shard.rows > MEASURED_ROWS:
            break
        chosen.append(shard)
    return chosen


def _rows_as_queries(shards: tuple[Shard, ...], rng: np.random.Generator) -> Queries:
    vectors, ids = _drawn_rows(shards, rng)
    return _with_truth(shards, vectors, tuple(ids))


def _texts(
    shards: tuple[Shard, ...],
    manifest: IndexManifest,
    embeddings: Path | None,
    rng: np.random.Generator,
) -> Queries:
    vectors = _other_tower(manifest, embeddings, rng) if embeddings else None
    if vectors is None:
        vectors = _moved(_drawn_rows(shards, rng)[0], rng)
    return _with_truth(shards, vectors, (None,) * len(vectors))


def _other_tower(
    manifest: IndexManifest, embeddings: Path, rng: np.random.Generator
) -> Vectors | None:
    other: Modality = "text" if manifest.modality == "image" else "image"
    try:
        parts = Parts.open(embeddings, other)
    except InputError:
        log.info("%s: has no %s vectors; rows moved by a gap stand for them", embeddings, other)
        return None
    manifest.model.require(parts.manifest.model, f"{embeddings}: the model")
    number = list(parts)[rng.integers(len(parts))]
    vectors = parts.vectors(number).astype(np.float32)
    norms = np.linalg.norm(vectors, axis=1)
    usable = vectors[np.abs(norms - 1) < 0.01]
    picked = rng.permutation(len(usable))[:QUERIES]
    return _unit(usable[picked]) if len(picked) else None


def _moved(vectors: Vectors, rng: np.random.Generator) -> Vectors:
    dim = vectors.shape[1]
    noise = _unit(rng.normal(size=vectors.shape))
    gap = GAP * _unit(rng.normal(size=(1, dim)))
    return _unit(vectors + noise + gap)


def _drawn_rows(shards: tuple[Shard, ...], rng: np.random.Generator) -> tuple[Vectors, list[int]]:
    segments = [segment for shard in shards for segment in shard.segments if len(segment)]
    total = sum(len(segment) for segment in segments)
    drawn: list[Vectors] = []
    ids: list[int] = []
    for segment in segments:
        rows = segment.live_rows()
        count = min(len(rows), max(1, round(QUERIES * len(rows) / total)))
        picked = np.sort(rng.choice(rows, count, replace=False))
        drawn.append(segment.vectors[picked].astype(np.float32))
        ids += segment.table.ids[picked].tolist()
    return _unit(np.concatenate(drawn)), ids


def _with_truth(
    shards: tuple[Shard, ...], vectors: Vectors, own: tuple[int | None, ...]
) -> Queries:
    return Queries(vectors, own, tuple(_best(shards, vectors, own, exact=True)))


def _best(
    shards: tuple[Shard, ...],
    vectors: Vectors,
    own: tuple[int | None, ...],
    *,
    exact: bool = False,
) -> list[Matches]:
    found = search_shards(shards, vectors, Wanted(K + 1, exact=exact))
    return others(found, own, K)


def _unit(vectors: NDArray[np.floating]) -> Vectors:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / norms, np.float32)
