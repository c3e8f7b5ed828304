"""Some rows of an index that stand for all of them, drawn at random."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray import uri
from clipray.errors import UsageError
from clipray.index import Index
from clipray.index.segment import Segment
from clipray.samples import Location

COLUMNS = ("caption", "source_path", "source_offset", "source_size")

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Row:
    """One row of an index.

    Attributes:
        vector: (dim,) float32.
        place: where its picture lies, where that is known.
    """

    id: int
    key: str
    vector: Vectors
    caption: str
    place: Location | None


def draw(index: Index, count: int, seed: int) -> list[Row]:
    """At most `count` live rows, each as likely as any other."""
    segments = [segment for shard in index.shards for segment in shard.segments if len(segment)]
    total = sum(len(segment) for segment in segments)
    picked = np.random.default_rng(seed).choice(total, min(count, total), replace=False)
    picked.sort()
    rows: list[Row] = []
    start = 0
    for segment in segments:
        end = start + len(segment)
        inside = picked[(picked >= start) & (picked < end)] - start
        rows += _read(segment, inside)
        start = end
    return rows


def place_of(columns: dict[str, Any]) -> Location | None:
    """Where the picture of a row lies, by its columns; None where they do not tell."""
    path = columns.get("source_path")
    if not path:
        return None
    try:
        return Location(uri.at(path), columns["source_offset"], columns["source_size"])
    except (KeyError, UsageError):  # of a store whose package is not here
        return None


def _read(segment: Segment, picked: NDArray[np.int64]) -> Iterator[Row]:
    for row in segment.live_rows()[picked]:
        columns = segment.table.row(int(row), COLUMNS)
        yield Row(
            id=int(segment.table.ids[row]),
            key=columns["key"],
            vector=segment.vectors[row].astype(np.float32),
            caption=str(columns.get("caption") or ""),
            place=place_of(columns),
        )
