"""What a service found: JSON of a reply to values."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray.matches import Coverage, Match, Matches

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Found:
    """The reply to one query.

    Attributes:
        matches: best first; a match has its `vector` where `embeddings` was asked for.
        coverage: how much of the index was searched.
        version: of the index.
        took_ms: milliseconds by stage, as the service measured them.
    """

    matches: Matches
    coverage: Coverage
    version: int
    took_ms: Mapping[str, float]

    @classmethod
    def from_json(cls, reply: Mapping[str, Any]) -> "Found":
        """From a reply of `POST /search`; what a newer service adds to coverage is left out."""
        told = reply["coverage"]
        known = {field.name: told[field.name] for field in fields(Coverage)}
        return cls(
            matches=Matches(tuple(_match(row) for row in reply["matches"])),
            coverage=Coverage(**known | {"missing": tuple(told["missing"])}),
            version=reply["version"],
            took_ms=reply["took_ms"],
        )

    @property
    def degraded(self) -> bool:
        """Whether a part of the index was not searched."""
        return self.coverage.degraded


def vector_from_json(numbers: Any) -> Vector:
    """(dim,) float32.

    Raises:
        ValueError: it is no list of numbers.
    """
    vector = np.array(numbers, dtype=np.float32)
    if vector.ndim != 1:
        raise ValueError(f"a vector of shape {vector.shape}")
    return vector


def _match(row: Mapping[str, Any]) -> Match:
    numbers = row.get("embedding")
    vector = vector_from_json(numbers) if isinstance(numbers, list) else None
    own = ("id", "key", "score") if vector is None else ("id", "key", "score", "embedding")
    columns = {name: row[name] for name in row if name not in own}
    return Match(int(row["id"]), row["key"], row["score"], columns, vector)
