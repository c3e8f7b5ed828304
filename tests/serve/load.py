"""Load on a service over HTTP: clients that ask one query after the other, and what came of it."""

import asyncio
import statistics
import time
from collections import Counter
from dataclasses import dataclass

import aiohttp

from clipray.client import AsyncClient, Found
from clipray.errors import ClipRayError

LIMIT_S = 60.0


@dataclass(frozen=True)
class Asked:
    """One query and what came of it."""

    query: int
    began: float
    seconds: float
    found: Found | None = None
    error: ClipRayError | None = None


class Load:
    """Asks from entering the context to leaving it.

    Args:
        url: of the service.
        queries: vectors, taken in turn.
        at_once: clients.
        retries: of each of them.
        ask: what all queries have besides.
    """

    def __init__(self, url, queries, at_once=16, retries=0, **ask) -> None:
        self._client = AsyncClient(
            url, retries=retries, connections=at_once, timeout_s=LIMIT_S, backoff_s=0.3
        )
        self._queries, self._at_once, self._ask = queries, at_once, ask
        self._stopped = False
        self.asked: list[Asked] = []

    async def __aenter__(self):
        self._clients = [asyncio.ensure_future(self._run(n)) for n in range(self._at_once)]
        return self

    async def __aexit__(self, *_):
        self._stopped = True
        await asyncio.gather(*self._clients)
        await self._client.close()

    async def until(self, happened, limit_s=LIMIT_S):
        """Wait until something is so under the load; returns the seconds that it took."""
        began = time.monotonic()
        while not await asyncio.to_thread(happened):
            assert time.monotonic() - began < limit_s
            await asyncio.sleep(0.1)
        return time.monotonic() - began

    async def more(self, count):
        """Wait until so many more queries are done."""
        wanted = len(self.asked) + count
        await self.until(lambda: len(self.asked) >= wanted)

    @property
    def errors(self):
        """How often each was raised."""
        raised = (asked.error for asked in self.asked if asked.error)
        return Counter(f"{type(error).__name__}: {error}" for error in raised)

    @property
    def degraded(self):
        """Replies of a part of the index."""
        return [asked for asked in self.asked if asked.found and asked.found.degraded]

    def figures(self):
        """Of all queries."""
        return figures(self.asked)

    async def _run(self, number):
        while not self._stopped:
            self.asked.append(await self._one(number % len(self._queries)))
            number += self._at_once + 1

    async def _one(self, query):
        began = time.monotonic()
        found = error = None
        try:
            found = await self._client.search(embedding=self._queries[query], **self._ask)
        except ClipRayError as raised:
            error = raised
        return Asked(query, began, time.monotonic() - began, found, error)


def median(asked):
    """Seconds."""
    return statistics.median(one.seconds for one in asked)


def figures(asked):
    """How many, how many failed, and how long they took."""
    took = sorted(one.seconds for one in asked)
    failed = sum(one.error is not None for one in asked)
    partial = sum(one.found is not None and one.found.degraded for one in asked)
    p50, p99 = median(asked), took[int(0.99 * (len(took) - 1))]
    return (
        f"{len(asked)} queries, {failed} failed, {partial} degraded, "
        f"p50 {1e3 * p50:.0f} ms, p99 {1e3 * p99:.0f} ms, max {1e3 * took[-1]:.0f} ms"
    )


@dataclass(frozen=True)
class Answered:
    """What came back over HTTP."""

    status: int
    retry_after: str | None
    seconds: float


async def flood(url, body, at_once, seconds):
    """Requests of many clients that never wait; statuses as they come, whatever they are."""
    answered, ends = [], time.monotonic() + seconds

    async def client(session):
        while (began := time.monotonic()) < ends:
            async with session.post(f"{url}/search", data=body) as response:
                await response.read()
            again = response.headers.get("Retry-After")
            answered.append(Answered(response.status, again, time.monotonic() - began))

    connector = aiohttp.TCPConnector(limit=at_once)
    async with aiohttp.ClientSession(connector=connector) as session:
        await asyncio.gather(*[client(session) for _ in range(at_once)])
    return answered
