"""Clients of the HTTP API: `AsyncClient`, and `Client` for code without an event loop.

They need neither torch nor faiss nor ray.
"""

import asyncio
import base64
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, Self, TypeVar
from urllib.parse import quote

import aiohttp

from clipray.errors import ClipRayError, QueryError, UnavailableError
from clipray.matches import Coverage, Match, Matches

TIMEOUT_S = 60.0

ResultT = TypeVar("ResultT")


@dataclass(frozen=True, slots=True)
class Found:
    """The reply to one query."""

    matches: Matches
    coverage: Coverage
    version: int
    took_ms: Mapping[str, float]

    @property
    def degraded(self) -> bool:
        """Whether a part of the index was not searched."""
        return self.coverage.degraded


class AsyncClient:
    """Asks a service.

    Args:
        url: of the service, such as `http://127.0.0.1:8000`.
        timeout_s: seconds for one request.
    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session:
            await self._session.close()

    async def search(
        self, text: str | None = None, image: bytes | Path | None = None, **query: Any
    ) -> Found:
        """Search with one query.

        Args:
            text: words to look for.
            image: an image file, or its bytes.
            query: the other fields of a query: `key`, `embedding`, `query` (a list of weighted
                terms), `index`, `modality`, `k`, `threshold`, `filter`, `columns`,
                `allow_partial`.

        Raises:
            QueryError: the service refuses the query; the message is its reason.
            UnavailableError: too little of the service answers.
            ClipRayError: the service cannot be reached or fails.
        """
        given = query | ({"text": text} if text is not None else {})
        if image is not None:
            given["image"] = image
        return (await self.search_many([given]))[0]

    async def search_many(self, queries: Sequence[Mapping[str, Any]]) -> list[Found]:
        """Search with several queries in one request; one reply each, in their order."""
        replies = await self._request("POST", "/search", [_encodable(query) for query in queries])
        return [_found(reply) for reply in replies]

    async def embed(
        self, text: str | None = None, image: bytes | Path | None = None
    ) -> list[float]:
        """The unit vector of a text or an image."""
        term = _encodable({"text": text} if image is None else {"image": image})
        reply = await self._request("POST", "/embed", term)
        return [float(value) for value in reply["embedding"]]

    async def picture(self, index: str, row_id: int, size: int | None = None) -> bytes:
        """The picture of a match; with `size`, a JPEG of at most that many pixels a side."""
        limit = f"?size={size}" if size else ""
        data: bytes = await self._request(
            "GET", f"/images/{quote(index, '')}/{row_id}{limit}", None
        )
        return data

    async def indices(self) -> dict[str, Any]:
        """What is served: names, modalities, versions, sizes and columns."""
        return dict(await self._request("GET", "/indices", None))

    async def _request(self, method: str, path: str, body: Any) -> Any:
        self._session = self._session or aiohttp.ClientSession(timeout=self._timeout)
        try:
            async with self._session.request(method, self._url + path, json=body) as response:
                is_picture = response.content_type.startswith("image/")
                reply = await (response.read() if is_picture else response.json(content_type=None))
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            told = str(error) or type(error).__name__
            raise ClipRayError(
                f"{self._url}{path}: no answer of a clipray service ({told})"
            ) from None
        if response.status >= 400:
            raise _refusal(response.status, reply)
        return reply


class Client:
    """`AsyncClient` for ordinary code: the same methods, each waits for its answer."""

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="clipray-client", daemon=True)
        self._thread.start()
        self._client = AsyncClient(url, timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the thread that drives them."""
        self._wait(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def search(
        self, text: str | None = None, image: bytes | Path | None = None, **query: Any
    ) -> Found:
        """As `AsyncClient.search`."""
        return self._wait(self._client.search(text, image, **query))

    def search_many(self, queries: Sequence[Mapping[str, Any]]) -> list[Found]:
        """As `AsyncClient.search_many`."""
        return self._wait(self._client.search_many(queries))

    def embed(self, text: str | None = None, image: bytes | Path | None = None) -> list[float]:
        """As `AsyncClient.embed`."""
        return self._wait(self._client.embed(text, image))

    def picture(self, index: str, row_id: int, size: int | None = None) -> bytes:
        """As `AsyncClient.picture`."""
        return self._wait(self._client.picture(index, row_id, size))

    def indices(self) -> dict[str, Any]:
        """As `AsyncClient.indices`."""
        return self._wait(self._client.indices())

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _encodable(query: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(query)
    image = given.get("image")
    if isinstance(image, Path):
        image = image.read_bytes()
    if isinstance(image, bytes):
        given["image"] = base64.b64encode(image).decode()
    if "query" in given:
        given["query"] = [_encodable(term) for term in given["query"]]
    return given


def _found(reply: Mapping[str, Any]) -> Found:
    coverage = reply["coverage"]
    return Found(
        matches=Matches(tuple(_match(row) for row in reply["matches"])),
        coverage=Coverage(**coverage | {"missing": tuple(coverage["missing"])}),
        version=reply["version"],
        took_ms=reply["took_ms"],
    )


def _match(row: Mapping[str, Any]) -> Match:
    columns = {name: row[name] for name in row if name not in ("id", "key", "score")}
    return Match(int(row["id"]), row["key"], row["score"], columns)


def _refusal(status: int, reply: Any) -> ClipRayError:
    error = reply.get("error", {}) if isinstance(reply, dict) else {}
    message = str(error.get("message", f"status {status}"))
    if status == 503:
        return UnavailableError(message)
    return QueryError(message) if status < 500 else ClipRayError(message)
