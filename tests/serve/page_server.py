"""The page and its routes over indices in this process, with faults that a test switches on."""

import asyncio
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from clipray import images, uri
from clipray.encoder import Encoder
from clipray.errors import NotFoundError
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.matches import Coverage
from clipray.query import Query, Term
from clipray.samples import Location
from clipray.search import find, query_vector
from clipray.serve.catalog import Catalog, Reply, ServedFolder
from clipray.serve.http import http_app

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


class LocalSearcher:
    """The ingress without Ray: indices by name, each with a folder for images or texts or both."""

    def __init__(self, roots: Mapping[str, Sequence[Path]], encoder: Encoder, faults: Faults):
        folders = [ServedFolder.open(name, root) for name, all_ in roots.items() for root in all_]
        self.catalog = Catalog(
            model=encoder.identity, source=ModelSource(name="x"), folders=tuple(folders)
        )
        self._indices = {folder.slot: Index.open(folder.root) for folder in folders}
        self._encoder, self._faults = encoder, faults

    async def search(self, query: Query) -> Reply:
        began = time.perf_counter()
        folder = self.catalog.find(query.index, query.modality)
        index = self._indices[folder.slot]
        matches = find(index, self._encoder, query)
        coverage = index.coverage
        if self._faults.lost:
            rows = coverage.rows_total
            coverage = Coverage(2, 1, rows // 2, rows, (1,))
        took = {"total": 1e3 * (time.perf_counter() - began)}
        return Reply(matches=matches, coverage=coverage, version=folder.version, took_ms=took)

    async def embed(self, term: Term) -> np.ndarray:
        index = next(iter(self._indices.values()))
        return query_vector([term], self._encoder, index.find)

    async def rows(self, index: str | None, ids: Sequence[int]) -> list[dict[str, Any] | None]:
        name = index or self.catalog.folders[0].name
        return [self._row(name, row_id) for row_id in ids]

    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        row = self._row(index, row_id)
        if row is None or not row.get("source_path"):
            raise NotFoundError(f"id {row_id}: no picture")
        place = Location(uri.at(row["source_path"]), row["source_offset"], row["source_size"])
        data = place.read(images.MAX_BYTES)
        if size is None:
            return data, images.media_type(data)
        return images.thumbnail(data, size), "image/jpeg"

    async def refresh(self) -> dict[str, Any]:
        return {folder.slot: folder.version for folder in self.catalog.folders}

    def _row(self, name: str, row_id: int) -> dict[str, Any] | None:
        slots = [folder.slot for folder in self.catalog.named(name)]
        shards = (shard for slot in slots for shard in self._indices[slot].shards)
        return next((row for shard in shards if (row := shard.row(row_id)) is not None), None)


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
def page_server(searcher: LocalSearcher, faults: Faults, port: int = 0) -> Iterator[str]:
    """Serve in a thread; gives the URL."""
    app = Faulty(http_app(searcher), faults)
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
