"""A service over HTTP that answers as it is told to, one request after the other."""

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass
class Seen:
    path: str
    body: Any
    key: str | None
    connection: Any


@dataclass
class Unruly:
    """Answers with `script` first, then with `otherwise`; `most` requests ran at one time."""

    otherwise: Answer
    script: deque[Answer] = field(default_factory=deque)
    seen: list[Seen] = field(default_factory=list)
    url: str = ""
    most: int = 0
    running: int = 0

    async def answer(self, request: web.Request) -> web.StreamResponse:
        text = await request.text()
        body, key = json.loads(text) if text else None, request.headers.get("Authorization")
        peer = request.transport.get_extra_info("peername")
        self.seen.append(Seen(request.path_qs, body, key, peer))
        now = self.script.popleft() if self.script else self.otherwise
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await now(request)
        finally:
            self.running -= 1


class Running:
    """Runs a service in a thread of its own, at `service.url`."""

    def __init__(self, service: Unruly) -> None:
        self._service = service
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> Unruly:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result()
        return self._service

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        app = web.Application(client_max_size=1 << 28)
        app.router.add_route("*", "/{path:.*}", self._service.answer)
        self._runner = web.AppRunner(app, handler_cancellation=True)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._service.url = "http://{}:{}".format(*self._runner.addresses[0])


def says(status: int, body: Any, kind: str = "application/json", **headers: str) -> Answer:
    """Replies with these; `retry_after="1"` is the header Retry-After."""
    text = body if isinstance(body, str) else json.dumps(body)
    named = {name.replace("_", "-"): value for name, value in headers.items()}

    async def answer(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, text=text, content_type=kind, headers=named)

    return answer


def refuses(status: int, kind: str = "", message: str = "", **headers: str) -> Answer:
    """Replies with an error as the service writes it."""
    return says(status, {"error": {"type": kind, "message": message}}, **headers)


async def resets(request: web.Request) -> web.StreamResponse:
    """Breaks the connection before a reply."""
    request.transport.abort()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Breaks the connection in the middle of a reply."""
    response = web.StreamResponse(headers={"Content-Length": "1000"})
    await response.prepare(request)
    await response.write(b"{")
    request.transport.abort()
    return response


def after(seconds: float, answer: Answer) -> Answer:
    """Waits first."""

    async def late(request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(seconds)
        return await answer(request)

    return late
