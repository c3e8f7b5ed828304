"""Approximate search through a Faiss index, with every candidate rescored from the vectors.

Deleted and filtered rows stay in the Faiss index. It is searched as if they were there, and when
too few of what it finds is allowed, more is asked of it, so recall does not suffer where whole
clusters are gone, which it does when a graph search is given a bitmap. When that would cost more
than looking at all rows, all rows are looked at.
"""

from typing import Any

import faiss
import numpy as np

from clipray.index.exact import ExactScan, Mask, Ranked, Rows, Vectors
from clipray.index.manifest import SearchSettings
from clipray.index.method import graph_of, inverted_of

SPARE = 8  # results beyond k, for rows that float32 cannot tell apart
WIDEN = 4
FEW_ROWS = 4096  # allowed ones; so many are looked at one by one
SCAN_SHARE = 1 / 4  # of the rows as candidates: then all can be looked at
GRAPH_COST = 64  # rows are scanned in the time in which a graph search keeps one more in sight


class Approximate:
    """A Faiss index over the rows of `exact`.

    Args:
        index: with positional ids.
        exact: the same rows' vectors.
        settings: how hard to look.
    """

    def __init__(self, index: Any, exact: ExactScan, settings: SearchSettings) -> None:
        # What a user's own RFlat would rescore is rescored here.
        inner = faiss.downcast_index(index)
        base = inner.base_index if isinstance(inner, faiss.IndexRefine) else index
        self._kept = index, base  # Faiss holds no references
        self._refined = faiss.IndexRefine(base, exact.view)
        self._exact, self.settings = exact, settings
        self._made: tuple[Any, Any] = None, None  # the last parameters, and what for
        self._inverted, self._graph = inverted_of(base), graph_of(base)

    @property
    def lists(self) -> int:
        """Lists of an IVF index; 0 for any other."""
        return int(self._inverted.nlist) if self._inverted is not None else 0

    @property
    def is_graph(self) -> bool:
        """Whether it is an HNSW index."""
        return self._graph is not None

    def search(self, queries: Vectors, k: int, allowed: Mask | None, count: int) -> list[Ranked]:
        """The best `k` of the `count` allowed rows for each of the (m, dim) float32 vectors."""
        total = len(self._exact.ids)
        depth, effort = -(-(k + SPARE) * total // count), 1
        found: dict[int, Ranked] = {}
        pending = np.arange(len(queries))
        few = allowed is not None and count <= FEW_ROWS
        while len(pending) and not few and self._pays(depth, effort):
            some = queries if len(pending) == len(queries) else queries[pending]
            rows = self._look(some, depth, effort)
            short = []
            for place, seen in zip(pending, rows, strict=True):
                kept = _kept(seen, allowed)
                if len(kept) < min(k, count):
                    short.append(place)
                    continue
                best, scores = self._exact.rescore(queries[place], kept[: k + SPARE])
                found[int(place)] = best[:k], scores[:k]
            pending = np.array(short, dtype=np.int64)
            depth, effort = WIDEN * depth, WIDEN * effort
        if len(pending):
            rest = self._exact.search(queries[pending], k, allowed)
            found.update(zip(pending.tolist(), rest, strict=True))
        return [found[place] for place in range(len(queries))]

    def _pays(self, depth: int, effort: int) -> bool:
        """Whether a look costs less than one at all rows."""
        total, candidates = len(self._exact.ids), self._candidates(depth)
        if self.is_graph and self._width(candidates, effort) * GRAPH_COST > total:
            return False
        return candidates <= total * SCAN_SHARE

    def _candidates(self, depth: int) -> int:
        return max(depth, (depth - SPARE) * self.settings.rescore)

    def _look(self, queries: Vectors, depth: int, effort: int) -> Rows:
        wanted, made = (depth, effort, self.settings), self._made
        if made[0] != wanted:  # making them costs as much as a search
            made = self._made = wanted, self._parameters(depth, effort)
        _, rows = self._refined.search(queries, depth, params=made[1])
        return np.asarray(rows)

    def _parameters(self, depth: int, effort: int) -> Any:
        candidates = self._candidates(depth)
        return faiss.IndexRefineSearchParameters(
            k_factor=candidates / depth, base_index_params=self._base(candidates, effort)
        )

    def _base(self, candidates: int, effort: int) -> Any:
        if self._inverted is not None:
            probes = min(self._inverted.nlist, self.settings.nprobe * effort)
            return faiss.SearchParametersIVF(nprobe=probes)
        if self._graph is not None:
            return faiss.SearchParametersHNSW(efSearch=self._width(candidates, effort))
        return None

    def _width(self, candidates: int, effort: int) -> int:
        return max(self.settings.ef_search * effort, candidates)


def _kept(rows: Rows, allowed: Mask | None) -> Rows:
    rows = rows if rows[-1] >= 0 else rows[rows >= 0]  # what is missing comes last
    return rows if allowed is None else rows[allowed[rows]]
