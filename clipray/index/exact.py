"""Exact search of float16 vectors that are mapped from the disk.

Few queries are answered by Faiss's float16 scan, many by matrix products over blocks of rows. Both
only find candidates: what counts is scored again in float64, and the search widens until rounding
cannot have hidden a better row. Segments and files are not known here.
"""

from collections.abc import Iterator
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Halves = NDArray[np.float16]
Rows = NDArray[np.int64]
Mask = NDArray[np.bool_]
Ranked = tuple[Rows, Vectors]  # best first

SPARE = 16  # candidates beyond k, so that one look is nearly always enough
MANY_QUERIES = 20  # from here on a matrix product is cheaper than a scan a query
BLOCK_ROWS = 4096
MOST_CANDIDATES = 1 << 22  # at a time, over all queries
GATHER_SHARE = 1 / 32  # a smaller share of the rows is copied out before it is scanned


class ExactScan:
    """Exact search over (n, dim) float16 unit vectors.

    Args:
        vectors: mapped or in memory; they stay where they are.
        ids: (n,) int64; equal scores are ordered by id.
    """

    def __init__(self, vectors: Halves, ids: Rows) -> None:
        self.vectors, self.ids = vectors, ids
        self.view = _view(vectors)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> list[Ranked]:
        """The best `k` of the allowed rows for each of the (m, dim) float32 unit vectors."""
        if allowed is None:
            return self._search(queries, k, None)
        rows = np.flatnonzero(allowed)
        if len(rows) > len(allowed) * GATHER_SHARE:
            return self._search(queries, k, allowed)
        part = ExactScan(np.ascontiguousarray(self.vectors[rows]), self.ids[rows])
        return [(rows[found], scores) for found, scores in part._search(queries, k, None)]

    def rescore(self, query: Vectors, rows: Rows) -> Ranked:
        """Exact scores of some rows, best first."""
        stored = self.vectors[rows].astype(np.float64)  # (candidates, dim)
        scores = (stored @ query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((self.ids[rows], -scores))
        return rows[order], scores[order]

    def _search(self, queries: Vectors, k: int, allowed: Mask | None) -> list[Ranked]:
        total = len(self.ids) if allowed is None else int(np.count_nonzero(allowed))
        if not total:
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        slack = queries.shape[1] * 2.0**-23  # twice what adding in float32 can be wrong by
        found: dict[int, Ranked] = {}
        pending, wanted = np.arange(len(queries)), min(total, k + SPARE)
        while len(pending):
            unclear = []
            # Where hundreds of rows are the same, what is looked at grows; not what is held.
            for some in np.array_split(pending, -(-len(pending) * wanted // MOST_CANDIDATES)):
                coarse, rows = self._candidates(queries[some], wanted, allowed)
                clear = coarse[:, min(k, wanted) - 1] - coarse[:, -1] > slack
                clear |= wanted == total
                for place, row in zip(some[clear], rows[clear], strict=True):
                    best, scores = self.rescore(queries[place], row)
                    found[int(place)] = best[:k], scores[:k]
                unclear.append(some[~clear])
            pending, wanted = np.concatenate(unclear), min(total, 4 * wanted)
        return [found[place] for place in range(len(queries))]

    def _candidates(self, queries: Vectors, wanted: int, allowed: Mask | None) -> tuple[Any, Any]:
        if len(queries) >= MANY_QUERIES:
            return self._multiply(queries, wanted, allowed)
        parameters = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")
            parameters = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        scores, rows = self.view.search(queries, wanted, params=parameters)
        return scores, rows

    def _multiply(self, queries: Vectors, wanted: int, allowed: Mask | None) -> tuple[Any, Any]:
        best = faiss.ResultHeap(len(queries), wanted, keep_max=True)
        for rows, block in self._blocks(allowed):
            count = min(wanted, len(rows))
            scores, places = faiss.knn(queries, block, count, metric=faiss.METRIC_INNER_PRODUCT)
            best.add_result(scores, rows[places])
        best.finalize()
        return best.D, best.I

    def _blocks(self, allowed: Mask | None) -> Iterator[tuple[Rows, Vectors]]:
        """Numbers of rows and their vectors as float32, block by block, in one buffer."""
        buffer = np.empty((min(BLOCK_ROWS, len(self.ids)), self.vectors.shape[1]), np.float32)
        for start in range(0, len(self.ids), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self.ids)))
            rows = rows if allowed is None else rows[allowed[rows]]
            if len(rows):
                whole = len(rows) == rows[-1] - rows[0] + 1
                halves = self.vectors[rows[0] : rows[-1] + 1] if whole else self.vectors[rows]
                codes, block = np.ascontiguousarray(halves).view(np.uint8), buffer[: len(rows)]
                self.view.sq.decode_c(faiss.swig_ptr(codes), faiss.swig_ptr(block), len(rows))
                yield rows, block


def _view(vectors: Halves) -> Any:
    """A Faiss index over vectors that it does not own; they must outlive it."""
    rows, dim = vectors.shape
    kind = faiss.ScalarQuantizer.QT_fp16
    index = faiss.IndexScalarQuantizer(dim, kind, faiss.METRIC_INNER_PRODUCT)
    if rows:
        codes = vectors.view(np.uint8).reshape(-1)
        nobody = index.codes.owner  # a C++ null that Python has no other name for
        index.codes = faiss.MaybeOwnedVectorUInt8.create_view(
            faiss.swig_ptr(codes), codes.size, nobody
        )
        index.ntotal = rows
    return index
