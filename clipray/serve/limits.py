"""How much of the process requests may take: bytes of bodies, seconds, places.

A body is read whole within the limits before the routes see it, so an endless or a slow one costs
a connection and no more. Routes then read it from memory.
"""

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from types import TracebackType
from typing import Self

from pydantic import Field
from starlette.types import Message, Receive

from clipray.config import Config
from clipray.errors import OverloadedError, QueryError
from clipray.serve.refusal import RETRY, Refusal

SMALL_BODY = 64 << 10  # a server drops one that was not read; a longer one ends the connection
LINGER_S = 1.0
MAX_KEYS, MAX_VALUES = 50_000, 2_000_000  # of the JSON of a body: a list of 256 queries has fewer


class LimitOptions(Config):
    """What requests may take."""

    max_body_bytes: int = Field(32 << 20, ge=1024, description="bytes of one request's body")
    max_held_bytes: int = Field(
        256 << 20, ge=1024, description="bytes of all bodies that the process holds at once"
    )
    body_timeout_s: float = Field(20, gt=0, description="seconds for a body to arrive")
    max_requests: int = Field(512, ge=1, description="requests at work at once")


class Limits:
    """What all requests of the process take together."""

    def __init__(self, options: LimitOptions) -> None:
        self.options = options
        self.held_bytes = 0
        self.at_work = 0

    def crowded(self) -> Refusal | None:
        """Why no further request is taken on now; None when one is."""
        if self.at_work < self.options.max_requests:
            return None
        told = f"{self.at_work} requests are at work, the most this service takes; try again"
        return Refusal(429, OverloadedError.__name__, told, RETRY)

    def too_long(self, found: int) -> Refusal | None:
        """Why a body of so many bytes is not read; None when it is."""
        if found <= self.options.max_body_bytes:
            return None
        told = f"a body of {found} bytes or more, at most {self.options.max_body_bytes} are read"
        return Refusal(413, QueryError.__name__, told)

    def too_many(self, body: bytes) -> Refusal | None:
        """Why the JSON in a body is not parsed; None when it is.

        A few megabytes of nothing but keys or values become gigabytes of objects and of messages
        about them. Colons and commas are counted, which takes no parsing and no measurable time;
        the few that stand in texts do not matter.
        """
        keys, values = body.count(b":"), body.count(b",")
        if keys <= MAX_KEYS and values <= MAX_VALUES:
            return None
        told = f"JSON of about {keys} keys and {values} values, at most {MAX_KEYS} and {MAX_VALUES}"
        return Refusal(413, QueryError.__name__, f"{told} are read; send several requests")

    def full(self) -> Refusal | None:
        """Why no more bytes are taken in now; None when they are."""
        if self.held_bytes <= self.options.max_held_bytes:
            return None
        told = f"requests hold {self.held_bytes} bytes, the most this service keeps; try again"
        return Refusal(503, OverloadedError.__name__, told, RETRY)

    def too_slow(self) -> Refusal:
        """Why a body that has not arrived is not waited for."""
        told = f"the body did not arrive within {self.options.body_timeout_s} s"
        return Refusal(408, QueryError.__name__, told)


class Body:
    """The body of one request; as a context it is counted until the request is done."""

    __slots__ = ("_limits", "_parts", "_size", "complete", "gone")

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._parts = bytearray()
        self._size = 0
        self.complete = False  # all has arrived
        self.gone = False  # the client, before that

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._limits.held_bytes -= self._size

    async def read(self, receive: Receive) -> Refusal | bytes:
        """All of it, or why not; sets `gone` and gives nothing where the client went away."""
        try:
            async with asyncio.timeout(self._limits.options.body_timeout_s):
                return await self._read(receive)
        except TimeoutError:
            return self._limits.too_slow()

    async def _read(self, receive: Receive) -> Refusal | bytes:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.gone = True
                return b""
            part = message.get("body", b"")
            self._size += len(part)
            self._limits.held_bytes += len(part)
            if refusal := self._limits.too_long(self._size) or self._limits.full():
                return refusal
            if not message.get("more_body", False):
                self.complete = True
                whole = self._whole(part)
                return self._limits.too_many(whole) or whole
            self._parts += part

    def _whole(self, last: bytes) -> bytes:
        if not self._parts:
            return last
        self._parts += last
        whole = bytes(self._parts)
        self._parts = bytearray()
        return whole


def announced(headers: Mapping[bytes, bytes]) -> int | None:
    """Bytes of the body that headers speak of; None where only its end will tell."""
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length", b"0")
    return int(length) if length.isdigit() and len(length) < 19 else None


def replayed(body: bytes, receive: Receive) -> Receive:
    """What a route receives: a body that has been read, then what the server has to say."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


async def linger(receive: Receive, most: int) -> None:
    """Throw away what still comes, for a second: closing at once would cut off our reply."""
    with suppress(TimeoutError):
        async with asyncio.timeout(LINGER_S):
            while most > 0:
                message = await receive()
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
                most -= len(message.get("body", b""))
