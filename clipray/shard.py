"""One shard of an index: its segments, searched together.

The in-process index and the service's replicas both search through `Shard`. Neither torch nor
Ray is needed, so a replica that holds shards stays small.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clipray.manifest import IndexFolder, ShardRecord
from clipray.matches import Matches
from clipray.segment import Segment

Vectors = NDArray[np.float32]


def row_id(key: str) -> int:
    """63-bit id of a key: the same in every build, shard and version."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") >> 1


class Shard:
    """An open shard."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        self.segments = tuple(segments)

    @classmethod
    def open(cls, folder: IndexFolder, record: ShardRecord) -> Self:
        """Verify the checksums of a shard's files and open them.

        Raises:
            DamagedError: naming the file that is missing, cut or changed.
        """
        for segment in record.segments:
            for name, file in segment.files.items():
                file.verify(folder.segment(segment.id) / name)
        return cls([Segment(folder.segment(segment.id)) for segment in record.segments])

    def __len__(self) -> int:
        return sum(len(segment) for segment in self.segments)

    @property
    def columns(self) -> set[str]:
        """Names of the metadata columns of any segment."""
        return {name for segment in self.segments for name in segment.columns}

    def column(self, name: str) -> Iterator[tuple[str, Any]]:
        """Key and value of one column, row by row."""
        for segment in self.segments:
            yield from segment.column(name)

    def find(self, key: str) -> Vectors | None:
        """The (dim,) float32 vector of a key, if it is here."""
        wanted = row_id(key)
        found = (segment.find(wanted) for segment in self.segments)
        return next((vector for vector in found if vector is not None), None)

    def row(self, row_id: int) -> dict[str, Any] | None:
        """Key and all columns of a row, if it is here."""
        found = (segment.row(row_id) for segment in self.segments)
        return next((row for row in found if row is not None), None)

    def search(
        self, queries: Vectors, k: int, threshold: float | None, columns: Sequence[str]
    ) -> list[Matches]:
        """The best `k` rows for each of the (m, dim) float32 unit vectors."""
        found = [segment.search(queries, k, threshold, columns) for segment in self.segments]
        return merge_batches(found, k) if found else [Matches()] * len(queries)


def merge_batches(found: Sequence[Sequence[Matches]], k: int) -> list[Matches]:
    """Merge what several parts found for the same queries, query by query."""
    return [Matches.merge(parts, k) for parts in zip(*found, strict=True)]
