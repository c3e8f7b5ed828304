"""Queries → groups → one answer each: coalesced, sent to every group once, merged.

Queries that wait at the same time go to a group in one call, those that want the same as one
matrix. Where a query comes from and how its vector was made is not known here.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipray.errors import StaleError, UnavailableError
from clipray.index.shard import Wanted
from clipray.matches import Coverage, Matches
from clipray.serve.catalog import ServedFolder
from clipray.serve.coalescer import Coalescer
from clipray.serve.groups import GroupSpec
from clipray.serve.holding import Job, Part
from clipray.serve.line import Line
from clipray.serve.meter import Stage

MOST = 128  # queries in one call

Vector = NDArray[np.float32]
Called = Callable[[int], object]


@dataclass(frozen=True, slots=True)
class Ask:
    """One query as the groups see it.

    Attributes:
        vector: (dim,) float32 unit vector.
    """

    folder: ServedFolder
    wanted: Wanted
    vector: Vector
    began: float = field(default_factory=time.perf_counter)

    @property
    def kind(self) -> str:
        """Those of one kind go as one matrix."""
        return f"{self.folder.slot} {self.folder.version} {self.wanted}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What all groups found for one query.

    Attributes:
        seconds: by stage: queue, search, merge.
    """

    matches: Matches
    coverage: Coverage
    seconds: Mapping[Stage, float]


class Fanout:
    """Asks all groups.

    Args:
        lines: to the groups.
        specs: what each of them holds.
        called: told the number of queries of every call.
    """

    def __init__(self, lines: Sequence[Line], specs: Sequence[GroupSpec], called: Called) -> None:
        self._groups = list(zip(lines, specs, strict=True))
        self._called = called
        self._coalescer = Coalescer[Ask, Answer](self._answer, MOST)

    async def search(self, ask: Ask) -> Answer:
        """The best rows of all groups that answer.

        Raises:
            StaleError: the version is not open in some group.
        """
        return await self._coalescer.ask(ask)

    async def each(
        self, folder: ServedFolder, method: str, *arguments: Any
    ) -> tuple[list[Any], UnavailableError | None]:
        """What the groups that hold some of a folder answer to a call.

        Returns:
            the answers, and why others are missing, None where none is.

        Raises:
            StaleError: the version is not open in one of them.
        """
        groups = [(line, spec.shards(folder)) for line, spec in self._groups]
        asked = [(line, folder.piece(shards)) for line, shards in groups if shards]
        calls = [line.call(method, piece, *arguments) for line, piece in asked]
        answers: list[Any] = []
        lost: UnavailableError | None = None
        for answer in await asyncio.gather(*calls, return_exceptions=True):
            if isinstance(answer, UnavailableError) and not isinstance(answer, StaleError):
                lost = answer
            elif isinstance(answer, BaseException):
                raise answer
            else:
                answers.append(answer)
        return answers, lost

    async def _answer(self, asks: Sequence[Ask]) -> list[Answer | BaseException]:
        sent = time.perf_counter()
        self._called(len(asks))
        kinds: dict[str, list[int]] = {}
        for place, ask in enumerate(asks):
            kinds.setdefault(ask.kind, []).append(place)
        batches = [[asks[place] for place in places] for places in kinds.values()]
        replies = await asyncio.gather(
            *[self._ask_group(line, spec, batches) for line, spec in self._groups]
        )
        came = time.perf_counter()
        answers: dict[int, Answer | BaseException] = {}
        by_kind = zip(kinds.values(), batches, zip(*replies, strict=True), strict=True)
        for places, batch, parts in by_kind:
            answers.update(zip(places, self._merged(batch, parts, sent, came), strict=True))
        return [answers[place] for place in range(len(asks))]

    async def _ask_group(
        self, line: Line, spec: GroupSpec, batches: Sequence[Sequence[Ask]]
    ) -> list[Any]:
        """For each batch a `Part`, an exception, or None where the group has none of the folder."""
        places = [n for n, batch in enumerate(batches) if spec.shards(batch[0].folder)]
        answers: list[Any] = [None] * len(batches)
        if places:
            jobs = [_job(batches[place], spec) for place in places]
            try:
                parts = await line.call("search", jobs)
            except UnavailableError as error:
                parts = [error] * len(jobs)
            for place, part in zip(places, parts, strict=True):
                answers[place] = part
        return answers

    def _merged(
        self, asks: Sequence[Ask], parts: Sequence[Any], sent: float, came: float
    ) -> list[Answer | BaseException]:
        folder, k = asks[0].folder, asks[0].wanted.k
        gone = next((part for part in parts if isinstance(part, StaleError)), None)
        if gone:
            return [gone] * len(asks)
        found: list[list[Matches]] = []
        lost: list[int] = []
        for (_, spec), part in zip(self._groups, parts, strict=True):
            if isinstance(part, Part):
                found.append(part.found)
                lost += part.lost
            elif part is not None:
                lost += spec.shards(folder)
        coverage = folder.coverage(lost)
        answers: list[Answer | BaseException] = []
        for place, ask in enumerate(asks):
            began = time.perf_counter()
            matches = Matches.merge([one[place] for one in found], k)
            seconds: dict[Stage, float] = {
                "queue": sent - ask.began,
                "search": came - sent,
                "merge": time.perf_counter() - began,
            }
            answers.append(Answer(matches, coverage, seconds))
        return answers


def _job(batch: Sequence[Ask], spec: GroupSpec) -> Job:
    folder = batch[0].folder
    queries = np.stack([ask.vector for ask in batch])
    return Job(folder.piece(spec.shards(folder)), queries, batch[0].wanted)
