"""The client for code with an event loop."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import quote

from clipray.client.ask import Ask, batches, encode
from clipray.client.found import Found, Vector, vector_from_json
from clipray.client.refusal import Reply
from clipray.client.transport import Limits, Transport
from clipray.errors import ClipRayError, UsageError

AT_ONCE = 4  # requests of one `search_many`

ResultT = TypeVar("ResultT")


class AsyncClient:
    """Asks a service; connections are kept open and used again.

    A client belongs to the event loop it is first used in, and any number of its tasks may use it
    at once. Another loop, or a process forked later, needs a client of its own.

    What fails and may succeed later is tried again: a connection that is refused or breaks, status
    429, 502, 503 and 504. Before each further try twice as long may pass, and at least as long as
    the service says in `Retry-After`. A reply from a part of the index is no error; see
    `Found.degraded`.

    Every method may raise:
        AccessError: the key is missing, wrong or not enough.
        NotFoundError: a key, an id or an index does not exist.
        QueryError: the service refuses the request for another reason, or ImageError and other
            kinds of `UsageError` where it names them.
        OverloadedError: it has too much to do; UnavailableError: too little of it answers.
        ClipRayError: it cannot be reached, fails, or answers what no clipray service does.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        key: of the service, sent as bearer token; by default the environment's CLIPRAY_KEY.
        timeout_s: seconds for one request, all its tries together.
        retries: tries after the first.
        backoff_s: at most this many seconds before the second try.
        connections: at most this many at the same time.
        max_reply_bytes: a longer reply is an error.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.1,
        connections: int = 32,
        max_reply_bytes: int = 256 << 20,
    ) -> None:
        limits = Limits(timeout_s, retries, backoff_s, connections, max_reply_bytes)
        self._transport = Transport(url, key, limits)

    def __repr__(self) -> str:
        return f"AsyncClient('{self.url}')"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """Of the service."""
        return self._transport.url

    async def close(self) -> None:
        """Close the connections; the client cannot be used any more."""
        await self._transport.close()

    async def search(self, text: str | None = None, /, **ask: Unpack[Ask]) -> Found:
        """Search with one query; `ask.Ask` says what its fields are."""
        given: Mapping[str, Any] = ask if text is None else {"text": text} | ask
        body = await asyncio.to_thread(encode, given)
        reply = await self._transport.request("POST", "/search", body)
        return _parsed(reply, Found.from_json)

    async def search_many(self, queries: Iterable[Ask]) -> list[Found]:
        """Search with any number of queries; one reply each, in their order.

        They go in requests of as many queries as a service takes, a few requests at the same time.
        The first error ends all of them.
        """
        waiting, turn = enumerate(batches(queries)), asyncio.Lock()
        found: dict[int, list[Found]] = {}

        async def work() -> None:
            while True:
                async with turn:
                    number, batch = await asyncio.to_thread(next, waiting, (0, None))
                if batch is None:
                    return
                found[number] = await self._batch(*batch)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(AT_ONCE):
                    group.create_task(work())
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [one for number in sorted(found) for one in found[number]]

    async def embed(
        self,
        text: str | None = None,
        image: bytes | Path | None = None,
        image_url: str | None = None,
    ) -> Vector:
        """(dim,) float32 unit vector of a text or an image."""
        term = {"text": text, "image": image, "image_url": image_url}
        body = await asyncio.to_thread(encode, term)
        reply = await self._transport.request("POST", "/embed", body)
        return _parsed(reply, lambda told: vector_from_json(told["embedding"]))

    async def picture(self, index: str, row_id: int, size: int | None = None) -> bytes:
        """The picture of a match; with `size`, a JPEG of at most that many pixels a side."""
        limit = "" if size is None else f"?size={size}"
        reply = await self._transport.request("GET", f"/images/{quote(index, '')}/{row_id}{limit}")
        if not reply.media_type.startswith("image/"):
            raise reply.strange()
        return reply.data

    async def indices(self) -> dict[str, Any]:
        """What is served: names, modalities, versions, sizes and columns."""
        return _parsed(await self._transport.request("GET", "/indices"), dict)

    async def refresh(self) -> dict[str, Any]:
        """Make the service go over to the newest version of every index; says which it serves."""
        return _parsed(await self._transport.request("POST", "/admin/refresh"), dict)

    async def ready(self) -> bool:
        """Whether the service answers queries now; it is asked once.

        Raises:
            UsageError: something else than clipray answers there, or the key is wrong.
        """
        try:
            await self._transport.request("GET", "/readyz", retries=0)
        except UsageError:
            raise
        except ClipRayError:
            return False
        return True

    async def _batch(self, queries: int, body: bytes) -> list[Found]:
        reply = await self._transport.request("POST", "/search", body)
        found = _parsed(reply, lambda told: [Found.from_json(one) for one in told])
        if len(found) != queries:
            raise ClipRayError(f"{reply.where}: {len(found)} replies to {queries} queries")
        return found


def _parsed(reply: Reply, parse: Callable[[Any], ResultT]) -> ResultT:
    told = reply.json()
    try:
        return parse(told)
    except (AttributeError, LookupError, TypeError, ValueError):
        raise reply.strange() from None
