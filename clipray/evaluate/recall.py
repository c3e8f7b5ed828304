"""Recall of approximate search against exact search over the same stored vectors.

Each k is a search of its own, for an approximate index looks at more rows where more are wanted.
Where queries come from, and who answers them, is not known here.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipray.evaluate.verdict import IndexRecall, Latency, Point
from clipray.index import Index
from clipray.index.manifest import SearchSettings
from clipray.index.tuning import grid, others, recall_of
from clipray.matches import Matches

KS = (1, 10, 100)
SHOWN_K = 10  # of latencies and of the curve
TIMED = 64  # queries a point of the curve

Vectors = NDArray[np.float32]
AskedT = TypeVar("AskedT")


@dataclass(frozen=True, slots=True)
class Queries:
    """Queries of one kind.

    Attributes:
        vectors: (m, dim) float32.
        own: id of the row that each query is, which must not find itself; None where none is.
        texts: the words behind them, where there are any.
    """

    vectors: Vectors
    own: tuple[int | None, ...]
    texts: tuple[str, ...] = ()

    @property
    def spare(self) -> int:
        """How many more than k must be asked for."""
        return int(any(own is not None for own in self.own))


class Judge:
    """Knows what exact search finds for some queries.

    Args:
        index: whose vectors are scanned; of two rows or more.
        queries: to be judged.
    """

    def __init__(self, index: Index, queries: Queries) -> None:
        self.queries = queries
        self.ks = tuple(k for k in KS if k < len(index))
        asked = max(self.ks) + queries.spare
        self._best = index.search(queries.vectors, asked, exact=True)

    @property
    def shown_k(self) -> int:
        """The k of the curve."""
        return max(k for k in self.ks if k <= SHOWN_K)

    def recall(self, answer: Callable[[int], Sequence[Matches]]) -> dict[str, float]:
        """`recall@k` for each k of what `answer` finds when it is asked for so many rows."""
        return {f"recall@{k}": self.recall_at(k, answer) for k in self.ks}

    def recall_at(self, k: int, answer: Callable[[int], Sequence[Matches]]) -> float:
        """Mean share of the exact best `k` that is found; of equal rows any is right."""
        found = others(answer(k + self.queries.spare), self.queries.own, k)
        best = others(self._best, self.queries.own, k)
        return float(np.mean([_recall(*pair) for pair in zip(found, best, strict=True)]))


def measure_index(
    index: Index, name: str, kinds: Mapping[str, Queries], *, curve: bool = True
) -> IndexRecall:
    """Measure an open index as it is set, and with other settings.

    Args:
        index: is set as its manifest says afterwards.
        name: where it lies, for the report.
        kinds: queries by kind.
        curve: whether to walk through other settings.
    """
    judges = {kind: Judge(index, queries) for kind, queries in kinds.items()}
    manifest, shown = index.manifest, min(judge.shown_k for judge in judges.values())
    index.tuned(manifest.settings)
    return IndexRecall(
        index=name,
        version=manifest.version,
        rows=len(index),
        method=manifest.method,
        settings=manifest.settings,
        queries={kind: len(queries.own) for kind, queries in kinds.items()},
        recall={kind: judge.recall(_answer(index, judge)) for kind, judge in judges.items()},
        latency={
            kind: latency(stopwatch(_alone(index, shown), queries.vectors))
            for kind, queries in kinds.items()
        },
        curve_k=shown,
        curve=_curve(index, judges, shown) if curve else (),
    )


def stopwatch(ask: Callable[[AskedT], object], queries: Iterable[AskedT]) -> list[float]:
    """Wall milliseconds of each query, after one that does not count."""
    asked = list(queries)
    ask(asked[0])
    took: list[float] = []
    for query in asked:
        began = time.perf_counter()
        ask(query)
        took.append(1e3 * (time.perf_counter() - began))
    return took


def latency(took: Sequence[float]) -> Latency:
    """Median and 95th percentile."""
    p50, p95 = np.percentile(took, (50, 95))
    return Latency(p50_ms=float(p50), p95_ms=float(p95))


def ladder(index: Index) -> list[SearchSettings]:
    """Settings from careless to thorough: how far the search reaches, else how much is rescored.

    What the index is set to is among them; nothing where every row is looked at.
    """
    steps, chosen = grid(index.shards), index.manifest.settings
    if steps is None:
        return []
    varied = [row[0].model_copy(update={"rescore": chosen.rescore}) for row in steps]
    rungs = varied if len(steps) > 1 else steps[0]
    known = {_reach(settings): settings for settings in (*rungs, chosen)}
    return [known[reach] for reach in sorted(known)]


def _curve(index: Index, judges: Mapping[str, Judge], k: int) -> tuple[Point, ...]:
    points: list[Point] = []
    chosen = index.manifest.settings
    try:
        for settings in tqdm(ladder(index), desc="curve", unit="setting"):
            index.tuned(settings)
            recall = {kind: one.recall_at(k, _answer(index, one)) for kind, one in judges.items()}
            ms = {
                kind: latency(stopwatch(_alone(index, k), one.queries.vectors[:TIMED])).p50_ms
                for kind, one in judges.items()
            }
            same = _reach(settings) == _reach(chosen)
            points.append(Point(settings=settings, chosen=same, recall=recall, ms=ms))
    finally:
        index.tuned(chosen)
    return tuple(points)


def _reach(settings: SearchSettings) -> tuple[int, int, int]:
    return settings.nprobe, settings.ef_search, settings.rescore


def _answer(index: Index, judge: Judge) -> Callable[[int], Sequence[Matches]]:
    return lambda k: index.search(judge.queries.vectors, k)


def _alone(index: Index, k: int) -> Callable[[Vectors], object]:
    return lambda vector: index.search(vector[None], k)


def _recall(found: Matches, best: Matches) -> float:
    """By score and by id: over HTTP a text may come with a score that is wrong in the last bit."""
    return max(recall_of(found, best), found.recall(best))
