"""The ingress deployment: query → vector → fan-out to the groups → merge.

Queries that wait at the same time go to a group as one matrix in one call.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import FastAPI
from numpy.typing import NDArray
from ray import serve
from ray.serve.handle import DeploymentHandle

from clipray import images, uri
from clipray.errors import InputError, NotFoundError, QueryError, UnavailableError
from clipray.index.reader import check_filter, require_columns, unit_queries
from clipray.index.shard import Wanted
from clipray.matches import Coverage, Matches
from clipray.query import Query, Term, combine
from clipray.samples import Location
from clipray.serve.catalog import Catalog, Reply, ServedFolder
from clipray.serve.http import http_app
from clipray.serve.replicas import GroupSpec

log = logging.getLogger(__name__)

DEADLINE_S = 10.0

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Ask:
    """One query as the groups see it; those with equal `where` share a call."""

    folder: ServedFolder
    wanted: Wanted
    vector: Vector

    @property
    def where(self) -> str:
        return f"{self.folder.slot} {self.wanted}"


@dataclass(frozen=True, slots=True)
class _Answer:
    matches: Matches
    coverage: Coverage


@serve.ingress()
class Search:
    """Ingress of the service.

    Args:
        catalog: what is served.
        encoder: handle of the encoder deployment.
        groups: handles of the groups, and what each of them holds.
    """

    def __init__(
        self,
        catalog: Catalog,
        encoder: DeploymentHandle[Any],
        groups: Sequence[DeploymentHandle[Any]],
        specs: Sequence[GroupSpec],
    ) -> None:
        self.catalog = catalog
        self._encoder = encoder.options(_by_reference=False)
        self._groups = [group.options(_by_reference=False) for group in groups]
        self._specs = tuple(specs)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """The HTTP API over this replica; Ray calls it once."""
        return http_app(self)

    async def search(self, query: Query) -> Reply:
        """Answer one query.

        Raises:
            QueryError: an unknown column; NotFoundError for an index or a key.
            UnavailableError: no group answers, or not all and `allow_partial` is false.
        """
        began = time.perf_counter()
        folder = self.catalog.find(query.index, query.modality)
        require_columns(query.columns, set(folder.columns))
        tree = query.filter and check_filter(query.filter, set(folder.columns))
        wanted = Wanted(query.k, filter=tree, columns=query.columns)
        vector = await self._vector(query.terms, folder.name)
        encoded = time.perf_counter()
        answer: _Answer = await self._coalesced(_Ask(folder, wanted, vector))
        _require_enough(answer.coverage, query)
        ended = time.perf_counter()
        seconds = {"encode": encoded - began, "search": ended - encoded, "total": ended - began}
        return Reply(
            matches=answer.matches.above(query.threshold),
            coverage=answer.coverage,
            version=folder.version,
            took_ms={name: 1e3 * value for name, value in seconds.items()},
        )

    async def embed(self, term: Term) -> Vector:
        """(dim,) float32 unit vector of a text or an image."""
        if term.key is not None:
            raise QueryError("a key is not embedded; give a text or an image")
        return await self._vector([term], "")

    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        """The picture of a row and its media type; a JPEG thumbnail when `size` is given.

        Raises:
            NotFoundError: when there is no such row or it has no picture.
        """
        row = await self._first("row", index, row_id)
        if row is None or not row.get("source_path"):
            raise NotFoundError(f"id {row_id}: no row of index '{index}' with a picture has it")
        return await asyncio.to_thread(_read_picture, row, size)

    async def rows(self, index: str | None, ids: Sequence[int]) -> list[dict[str, Any] | None]:
        """Id, key and all columns of rows; None for an id that no row of the index has."""
        name = index or self.catalog.folders[0].name
        return list(await asyncio.gather(*[self._first("row", name, row_id) for row_id in ids]))

    async def refresh(self) -> dict[str, Any]:
        """Which version of each index is served."""
        return {folder.slot: folder.version for folder in self.catalog.folders}

    async def _vector(self, terms: Sequence[Term], index: str) -> Vector:
        vectors = await asyncio.gather(*[self._term(term, index) for term in terms])
        mixed = combine(vectors, [term.weight for term in terms])
        (vector,) = unit_queries(mixed[None], self.catalog.model.dim)  # as in process
        return np.asarray(vector)

    async def _term(self, term: Term, index: str) -> Vector:
        vector: Vector | None
        if term.text is not None:
            vector = await self._encoder.encode_text.remote(term.text)
        elif term.image is not None:
            vector = await self._encoder.encode_image.remote(term.image)
        elif term.embedding is not None:
            (vector,) = unit_queries(np.array([term.embedding]), self.catalog.model.dim)
        else:
            vector = await self._first("find", index, term.key)
        if vector is None:
            raise NotFoundError(f"key '{term.key}': no row of index '{index}' has it")
        return vector

    async def _first(self, method: str, index: str, wanted: Any) -> Any:
        slots = [folder.slot for folder in self.catalog.named(index)]
        calls = [getattr(g, method).remote(slot, wanted) for g in self._groups for slot in slots]
        found = await asyncio.gather(*[asyncio.wait_for(call, DEADLINE_S) for call in calls])
        return next((value for value in found if value is not None), None)

    @serve.batch(max_batch_size=128, batch_wait_timeout_s=0.0)
    async def _coalesced(self, asks: list[_Ask]) -> list[_Answer]:
        shared: dict[Any, list[int]] = {}
        for place, ask in enumerate(asks):
            shared.setdefault(ask.where, []).append(place)
        fanned = [self._fan_out([asks[place] for place in places]) for places in shared.values()]
        answers: dict[int, _Answer] = {}
        for places, found in zip(shared.values(), await asyncio.gather(*fanned), strict=True):
            answers.update(zip(places, found, strict=True))
        return [answers[place] for place in range(len(asks))]

    async def _fan_out(self, asks: Sequence[_Ask]) -> list[_Answer]:
        slot, wanted = asks[0].folder.slot, asks[0].wanted
        queries = np.stack([ask.vector for ask in asks])
        calls = [group.search.remote(slot, queries, wanted) for group in self._groups]
        waited = [asyncio.wait_for(call, DEADLINE_S) for call in calls]
        replies = await asyncio.gather(*waited, return_exceptions=True)
        found: list[list[Matches]] = []
        missing: list[int] = []
        for reply, spec in zip(replies, self._specs, strict=True):
            if isinstance(reply, BaseException):
                log.warning("shards %s did not answer: %r", spec.shards[slot], reply)
                missing += spec.shards[slot]
            else:
                found.append(reply[0])
        coverage = asks[0].folder.coverage(missing)
        merged = (Matches.merge([part[i] for part in found], wanted.k) for i in range(len(asks)))
        return [_Answer(matches, coverage) for matches in merged]


def _require_enough(coverage: Coverage, query: Query) -> None:
    if coverage.shards_ok == 0 or (coverage.degraded and not query.allow_partial):
        answered = f"{coverage.shards_ok} of {coverage.shards_total} shards answered"
        raise UnavailableError(f"{answered}; try again later")


def _read_picture(row: dict[str, Any], size: int | None) -> tuple[bytes, str]:
    try:
        place = Location(uri.at(row["source_path"]), row["source_offset"], row["source_size"])
        data = place.read(images.MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"picture of {row['key']}: its source is gone ({error})") from None
    if size is None:
        return data, images.media_type(data)
    return images.thumbnail(data, size), "image/jpeg"
