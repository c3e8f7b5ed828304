"""The page and its routes over indices in this process, with faults that a test switches on."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clipray.encoder import Encoder
from clipray.matches import Coverage
from clipray.query import Query
from clipray.serve.catalog import Reply
from clipray.serve.guard import GuardOptions, guarded
from clipray.serve.http import http_app
from clipray.serve.keys import Keys
from tests.serve.local import LocalSearcher

OPEN = ("/", "/web/")  # what a service that wants a key gives without one


@dataclasses.dataclass
class Faults:
    """What goes wrong; nothing by default.

    Attributes:
        key: that requests must carry.
        lost: whether a shard does not answer.
        refusals: status and Retry-After of the next searches.
        delay_s: before each search is answered.
    """

    key: str | None = None
    lost: bool = False
    refusals: list[tuple[int, str]] = dataclasses.field(default_factory=list)
    delay_s: float = 0.0

    def clear(self) -> None:
        """Nothing goes wrong any more."""
        vars(self).update(vars(Faults()))


class PageSearcher(LocalSearcher):
    """Loses a shard and times itself."""

    def __init__(self, roots: Mapping[str, Sequence[Path]], encoder: Encoder, faults: Faults):
        super().__init__(roots, encoder)
        self._faults = faults

    async def search(self, query: Query) -> Reply:
        began = time.perf_counter()
        reply = await super().search(query)
        took = {"total": 1e3 * (time.perf_counter() - began)}
        rows = reply.coverage.rows_total
        lost = Coverage(2, 1, rows // 2, rows, (1,))
        coverage = lost if self._faults.lost else reply.coverage
        return reply.model_copy(update={"took_ms": took, "coverage": coverage})


class Faulty:
    """ASGI middleware that refuses and delays as `faults` says."""

    def __init__(self, app: ASGIApp, faults: Faults) -> None:
        self._app, self._faults = app, faults

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer: ASGIApp = self._app
        if scope["type"] == "http":
            answer = await self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send)

    async def _refusal(self, request: Request) -> Response | None:
        key, path = self._faults.key, request.url.path
        is_open = path == OPEN[0] or path.startswith(OPEN[1])
        if key and not is_open and request.headers.get("authorization") != f"Bearer {key}":
            return _error(401, "AccessError", "a key is wanted", {"WWW-Authenticate": "Bearer"})
        if path != "/search":
            return None
        await asyncio.sleep(self._faults.delay_s)
        if not self._faults.refusals:
            return None
        status, wait = self._faults.refusals.pop(0)
        return _error(status, "OverloadedError", "too many searches wait", {"Retry-After": wait})


def _error(status: int, kind: str, message: str, headers: dict[str, str]) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, status, headers)


@contextmanager
def page_server(searcher: PageSearcher, faults: Faults, port: int = 0) -> Iterator[str]:
    """Serve in a thread; gives the URL."""
    app = guarded(
        Faulty(http_app(searcher), faults), GuardOptions(), Keys(), searcher.meter, local=True
    )
    config = uvicorn.Config(app, port=port, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
