"""HTTP with retries and limits; what a request asks for is not known here.

Everything that clipray's API offers may be asked twice without harm, so what fails and may succeed
later is tried again: connections that are refused or break, and the statuses in `PASSING`.
"""

import asyncio
import logging
import os
import random
import time
from dataclasses import dataclass
from itertools import count
from typing import NoReturn
from urllib.parse import urlsplit

import aiohttp

from clipray.client.refusal import Reply, refusal
from clipray.errors import ClipRayError, ConfigError, UsageError

log = logging.getLogger(__name__)

CONNECT_S = 10.0
MAX_BACKOFF_S = 5.0
PASSING = (429, 502, 503, 504)
BROKEN = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, ConnectionError)
JSON_BODY = {"Content-Type": "application/json"}


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how often and how much.

    Attributes:
        timeout_s: seconds for one request, all its tries together.
        retries: tries after the first.
        backoff_s: before try n + 1, up to `backoff_s` · 2ⁿ⁻¹ seconds pass, drawn by chance.
        connections: at most this many at the same time.
        reply_bytes: a longer reply is an error.
    """

    timeout_s: float
    retries: int
    backoff_s: float
    connections: int
    reply_bytes: int


@dataclass(frozen=True, slots=True)
class _Trouble:
    error: ClipRayError
    wait_s: float | None  # before another try; None where that would be in vain


class Transport:
    """Connections to one service, kept open between requests.

    They belong to the event loop and the process of the first request.
    """

    def __init__(self, url: str, key: str | None, limits: Limits) -> None:
        self.url = _checked_url(url)
        self._headers = _authorization(key)
        self._limits = limits
        self._session: aiohttp.ClientSession | None = None
        self._home: tuple[int, asyncio.AbstractEventLoop] | None = None
        self._closed = False

    async def close(self) -> None:
        """Close the connections; in a forked process they stay the parent's."""
        self._closed = True
        if self._session and self._home and self._home[0] == os.getpid():
            await self._session.close()

    async def request(
        self, method: str, path: str, body: bytes | None = None, *, retries: int | None = None
    ) -> Reply:
        """A reply with a status below 300.

        Raises:
            ClipRayError: of the class that fits the status; see `refusal`.
            UsageError: closed, or used in another event loop or process.
        """
        session = self._opened()
        ends = time.monotonic() + self._limits.timeout_s
        tries = 1 + (self._limits.retries if retries is None else retries)
        for tried in count(1):
            got = await self._try(session, method, path, body, ends - time.monotonic())
            if isinstance(got, Reply):
                return got
            pause = self._pause(got, tried)
            if pause is None or tried >= tries or time.monotonic() + pause >= ends:
                got.error.add_note(f"tries: {tried}")
                raise got.error
            log.debug("%s, again in %.2f s", got.error, pause)
            await asyncio.sleep(pause)
        raise AssertionError

    def _opened(self) -> aiohttp.ClientSession:
        if self._closed:
            raise UsageError(f"the client of {self.url} is closed; make a new one")
        here = os.getpid(), asyncio.get_running_loop()
        if self._session is None:
            self._home = here
            connector = aiohttp.TCPConnector(limit=self._limits.connections)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers)
        elif self._home != here:
            raise UsageError(
                f"the client of {self.url} was used in another event loop or process before; "
                "make one for each"
            )
        return self._session

    async def _try(
        self,
        session: aiohttp.ClientSession,
        method: str,
        path: str,
        body: bytes | None,
        left_s: float,
    ) -> Reply | _Trouble:
        where = self.url + path
        # Not 0 or less, which would be no limit.
        limit = aiohttp.ClientTimeout(total=max(left_s, 1e-3), sock_connect=CONNECT_S)
        kind = None if body is None else JSON_BODY
        try:
            async with session.request(
                method, where, data=body, headers=kind, timeout=limit, allow_redirects=False
            ) as response:
                reply = await self._read(response, where)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return self._unanswered(error, where)
        if reply.status < 300:
            return reply
        return _Trouble(refusal(reply), reply.wait_s if reply.status in PASSING else None)

    async def _read(self, response: aiohttp.ClientResponse, where: str) -> Reply:
        data = bytearray()
        async for part in response.content.iter_any():
            data += part
            if len(data) > self._limits.reply_bytes:
                _refuse_long(where, self._limits.reply_bytes)
        return Reply(
            where=where,
            status=response.status,
            media_type=response.content_type,
            data=bytes(data),
            retry_after=response.headers.get("Retry-After"),
            location=response.headers.get("Location"),
        )

    def _unanswered(self, error: Exception, where: str) -> _Trouble:
        is_late = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ClientError)
        told = f"within {self._limits.timeout_s:g} s" if is_late else str(error)
        answer = f"{where}: no answer of a clipray service ({told or type(error).__name__})"
        in_vain = not isinstance(error, BROKEN) or isinstance(error, aiohttp.ClientSSLError)
        return _Trouble(ClipRayError(answer), None if in_vain else 0.0)

    def _pause(self, trouble: _Trouble, tried: int) -> float | None:
        if trouble.wait_s is None:
            return None
        longest = min(MAX_BACKOFF_S, self._limits.backoff_s * 2.0 ** (tried - 1))
        return trouble.wait_s + random.uniform(0, longest)  # noqa: S311  no secret


def _refuse_long(where: str, limit: int) -> NoReturn:
    raise ClipRayError(
        f"{where}: the reply is longer than {limit} bytes; ask for fewer matches or columns at "
        "once, or give the client a larger max_reply_bytes"
    )


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigError(f"url: found '{url}', expected such as http://127.0.0.1:8000")
    if parts.username or parts.password or parts.query or parts.fragment:
        raise ConfigError(
            f"url: expected scheme, host, port and path alone for {parts.hostname}; a key is given "
            "as key="
        )
    return url.rstrip("/")


def _authorization(key: str | None) -> dict[str, str]:
    given = os.environ.get("CLIPRAY_KEY", "") if key is None else key
    if not given:
        return {}
    if not (given.isascii() and given.isprintable()) or " " in given:
        raise ConfigError("key: it has characters that no HTTP header carries")
    return {"Authorization": f"Bearer {given}"}
