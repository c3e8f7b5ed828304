"""What a search gives back: small frozen values, with one merge.

Segments, shards and the fan-out of the service all merge with `Matches.merge`, so they cannot
drift apart. Nothing here knows how a search is done.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from heapq import nsmallest
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Match:
    """One row that was found.

    Attributes:
        id: 63-bit hash of the key.
        key: `<source name>/<key>` of the sample.
        score: cosine of query and row.
        columns: the metadata that was asked for.
        vector: of the row, (dim,) float32 array, where it was asked for, else None.
    """

    id: int
    key: str = ""
    score: float = 0.0
    columns: Mapping[str, Any] = field(default_factory=dict)
    vector: Any = field(default=None, compare=False)

    def to_json(self) -> dict[str, Any]:
        """Flat, with the id as a string: JavaScript and jq round 63-bit numbers."""
        shown = {**self.columns, "id": str(self.id), "key": self.key, "score": self.score}
        return shown if self.vector is None else shown | {"embedding": self.vector.tolist()}

    @property
    def rank(self) -> tuple[float, int]:
        """Best first: by score, then by id so that ties have one order everywhere."""
        return -self.score, self.id


@dataclass(frozen=True, slots=True)
class Matches:
    """The rows found for one query, best first."""

    items: tuple[Match, ...] = ()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Match]:
        return iter(self.items)

    def __reduce__(self) -> Any:
        """Travels by column: a tenth of the work of one object for every match."""
        rows = ((m.id, m.key, m.score, m.columns, m.vector) for m in self.items)
        return _unpacked, tuple(map(list, zip(*rows, strict=True)))

    @property
    def ids(self) -> list[int]:
        """Ids, best first."""
        return [match.id for match in self.items]

    @classmethod
    def merge(cls, parts: Iterable[Self], k: int) -> Self:
        """The best `k` of several results; a row that stands in two parts counts once."""
        best: dict[int, Match] = {}
        for match in (match for part in parts for match in part):
            held = best.get(match.id)
            if held is None or match.rank < held.rank:
                best[match.id] = match
        return cls(tuple(nsmallest(k, best.values(), key=lambda match: match.rank)))

    def above(self, threshold: float | None) -> Self:
        """The matches with at least this score."""
        if threshold is None:
            return self
        return type(self)(tuple(match for match in self if match.score >= threshold))

    def without_vectors(self) -> Self:
        """The same for who has not asked for vectors."""
        return type(self)(tuple(replace(match, vector=None) for match in self))

    def recall(self, truth: Self) -> float:
        """Fraction of `truth` that is found here; 1.0 where there is nothing to find."""
        return len(set(self.ids) & set(truth.ids)) / len(truth) if len(truth) else 1.0


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of an index a reply was computed from."""

    shards_total: int = 0
    shards_ok: int = 0
    rows_searched: int = 0
    rows_total: int = 0
    missing: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As the HTTP API gives it."""
        return asdict(self) | {"missing": list(self.missing)}

    @property
    def degraded(self) -> bool:
        """Whether a part of the index was not searched."""
        return self.shards_ok < self.shards_total


def _unpacked(*columns: list[Any]) -> Matches:
    return Matches(tuple(map(Match, *columns))) if columns else Matches()
