"""One shard of an index: its segments and their deletions, searched together.

The in-process index and the service's replicas both search through `search_shards`. Neither torch
nor Ray is needed, so a replica that holds shards stays small.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipray.errors import DamagedError
from clipray.index.deletions import dead_rows
from clipray.index.manifest import IndexFolder, SearchSettings, SegmentRecord, ShardRecord
from clipray.index.segment import Hit, Segment
from clipray.index.table import OWN_COLUMNS, row_id
from clipray.matches import Match, Matches

Vectors = NDArray[np.float32]
Filter = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a search returns of each match, and of which rows.

    Attributes:
        k: at most this many matches a query.
        threshold: smallest cosine that is kept.
        filter: metadata filter, as `filters` describes it.
        columns: metadata to return.
        vectors: whether to return the rows' vectors.
        exact: scan all rows, whatever the method.
    """

    k: int = 10
    threshold: float | None = None
    filter: Filter | None = None
    columns: tuple[str, ...] = ()
    vectors: bool = False
    exact: bool = False


class Shard:
    """An open shard."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)

    @classmethod
    def open(
        cls,
        folder: IndexFolder,
        record: ShardRecord,
        settings: SearchSettings | None = None,
        *,
        verify: bool = True,
    ) -> Self:
        """Open the segments of a shard, after verifying their checksums unless told not to.

        Raises:
            DamagedError: naming the file that is missing, cut or changed.
        """
        return cls([_open(folder, segment, settings, verify=verify) for segment in record.segments])

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def columns(self) -> set[str]:
        """Names of the metadata columns of any segment."""
        return {name for segment in self.segments for name in segment.table.columns}

    def column(self, name: str) -> Iterator[tuple[str, Any]]:
        """Key and value of one column, row by row."""
        for segment in self.segments:
            yield from segment.column(name)

    def tuned(self, settings: SearchSettings) -> None:
        """Look this hard from now on."""
        for segment in self.segments:
            segment.tuned(settings)

    def find(self, key: str) -> Vectors | None:
        """The (dim,) float32 vector of a key, if it is here."""
        place = self._place(row_id(key))
        return place[0].vectors[place[1]].astype(np.float32) if place else None

    def row(self, row_id: int) -> dict[str, Any] | None:
        """Key and all columns of a row, if it is here."""
        place = self._place(row_id)
        return place[0].table.row(place[1]) if place else None

    def search(self, queries: Vectors, wanted: Wanted) -> list[Matches]:
        """The best rows for each of the (m, dim) float32 unit vectors, as `Hit`s."""
        found = [
            segment.search(queries, wanted.k, wanted.filter, exact=wanted.exact)
            for segment in self.segments
        ]
        return merge_batches(found, wanted.k) if found else [Matches()] * len(queries)

    def _place(self, row_id: int) -> tuple[Segment, int] | None:
        for segment in self.segments:
            row = segment.find(row_id)
            if row is not None:
                return segment, row
        return None


def search_shards(shards: Sequence[Shard], queries: Vectors, wanted: Wanted) -> list[Matches]:
    """The best rows of several shards for each of the (m, dim) float32 unit vectors."""
    found = [shard.search(queries, wanted) for shard in shards]
    if not found:
        return [Matches()] * len(queries)
    columns = [name for name in wanted.columns if name not in OWN_COLUMNS]
    merged = (matches.above(wanted.threshold) for matches in merge_batches(found, wanted.k))
    return [
        Matches(tuple(_filled(hit, columns, vectors=wanted.vectors) for hit in hits))
        for hits in merged
    ]


def merge_batches(found: Sequence[Sequence[Matches]], k: int) -> list[Matches]:
    """Merge what several parts found for the same queries, query by query."""
    if len(found) == 1:
        return list(found[0])
    return [Matches.merge(parts, k) for parts in zip(*found, strict=True)]


def _filled(hit: Match, names: Sequence[str], *, vectors: bool) -> Match:
    """The match with its key, columns and vector."""
    if not isinstance(hit, Hit) or hit.segment is None:
        return hit
    columns = hit.segment.table.row(hit.row, names)
    vector = hit.segment.vectors[hit.row].astype(np.float32) if vectors else None
    return Match(hit.id, columns.pop("key"), hit.score, columns, vector)


def _open(
    folder: IndexFolder, record: SegmentRecord, settings: SearchSettings | None, *, verify: bool
) -> Segment:
    for path, file in folder.files(record):
        file.verify(path) if verify else file.require(path)
    dead = dead_rows(folder, record) if record.deletions else None
    segment = Segment(folder.segment(record.id), dead, settings)
    if len(segment) != record.live:
        told = f"{len(segment)} live rows, its manifest says {record.live}"
        raise DamagedError(f"{folder.segment(record.id)}: {told}")
    return segment
