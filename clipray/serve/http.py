"""The HTTP API, over anything that answers queries.

Requests are validated here. Where the answers come from is not known: a test puts an in-process
index behind the same routes. What a request may cost and who may ask is `guard`'s.
"""

import asyncio
import time
from importlib.resources import files
from typing import Annotated

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from clipray import __version__
from clipray.errors import ClipRayError, NotFoundError, UsageError
from clipray.query import MAX_ID, Query, Term
from clipray.serve import openapi
from clipray.serve.knn_service import add_knn_service
from clipray.serve.meter import CONTENT_TYPE
from clipray.serve.raters import NO_RATERS, Raters
from clipray.serve.replies import Refusals, json_reply
from clipray.serve.searcher import Searcher

MAX_QUERIES = 256
MAX_THUMBNAIL = 1_024
PAGE = files("clipray.serve") / "web"
SCRIPTS = ("app", "api", "cards", "chips", "keys", "page", "query", "upload")
PAGE_TYPES = {
    "index.html": "text/html",
    "style.css": "text/css",
    **{f"{name}.js": "text/javascript" for name in SCRIPTS},
}

Queries = Annotated[list[Query], Field(max_length=MAX_QUERIES, fail_fast=True)]

QUERY: TypeAdapter[Query | list[Query]] = TypeAdapter(Query)
QUERIES: TypeAdapter[Query | list[Query]] = TypeAdapter(Queries)
TERM = TypeAdapter(Term)


def http_app(searcher: Searcher, raters: Raters = NO_RATERS) -> ASGIApp:
    """The routes over `searcher`.

    Args:
        searcher: answers the queries.
        raters: what is configured for clip-retrieval's API.
    """
    app = FastAPI(title="clipray", version=__version__, docs_url=None, redoc_url=None)
    app.openapi = lambda: openapi.described(app)  # type: ignore[method-assign]
    refusals = Refusals(searcher.meter)
    refusals.of(app)
    searching = Searching(searcher)
    _add_search(app, searcher, searching)
    _add_pictures(app, searcher)
    _add_status(app, searcher)
    _add_page(app)
    add_knn_service(app, searcher, raters)
    return _Shortcut(app, searching, refusals)


class Searching:
    """Answers `POST /search`."""

    def __init__(self, searcher: Searcher) -> None:
        self._searcher = searcher

    async def __call__(self, request: Request) -> Response:
        """Search with one query, or with a list of them; each gets its reply."""
        body = await request.body()
        began = time.perf_counter()
        query = (QUERIES if body.lstrip()[:1] == b"[" else QUERY).validate_json(body)
        self._searcher.meter.stage("parse", time.perf_counter() - began)
        if isinstance(query, Query):
            return json_reply((await self._searcher.search(query)).to_json())
        replies = await asyncio.gather(*[self._searcher.search(one) for one in query])
        return json_reply([reply.to_json() for reply in replies])


class _Shortcut:
    """Takes searches past the layers of FastAPI, which cost half a search, and all else to it.

    HEAD is answered as GET; the server keeps the body back.
    """

    def __init__(self, app: FastAPI, searching: Searching, refusals: Refusals) -> None:
        self._app = app
        routes = (route for route in app.routes if isinstance(route, APIRoute))
        self._route = next(route for route in routes if route.path == "/search")
        self._searching = searching
        self._refusals = refusals

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") == "HEAD":
            asked = {**scope, "method": "GET"}
            await self._app(asked, receive, send)
            scope["route"] = asked.get("route")
            return
        if scope["type"] != "http" or scope["path"] != "/search" or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        scope["route"] = self._route  # as FastAPI notes it
        try:
            response = await self._searching(Request(scope, receive))
        except (ValidationError, ClipRayError) as error:
            response = self._refusals.reply(error)
        await response(scope, receive, send)


def _add_search(app: FastAPI, searcher: Searcher, searching: Searching) -> None:
    @app.post(
        "/search",
        openapi_extra=openapi.body(Query, openapi.QUERIES, many=True),
        responses=openapi.replies("Reply", many=True),
    )
    async def search(request: Request) -> Response:
        """Search with one query, or with a list of them; each gets its reply."""
        return await searching(request)

    @app.post(
        "/embed",
        openapi_extra=openapi.body(Term, openapi.TERMS),
        responses=openapi.replies("Embedding"),
    )
    async def embed(request: Request) -> Response:
        """The unit vector of a text or an image."""
        vector = await searcher.embed(TERM.validate_json(await request.body()))
        return json_reply({"embedding": vector.tolist(), "dim": len(vector)})

    @app.post("/admin/refresh", responses=openapi.replies())
    async def refresh() -> Response:
        """Go over to the newest version of every index now, and say which are served."""
        return json_reply(await searcher.refresh())


def _add_pictures(app: FastAPI, searcher: Searcher) -> None:
    @app.get("/images/{index}/{row_id}", responses=openapi.replies())
    async def image(index: str, row_id: int, size: int | None = None) -> Response:
        """The picture of a row; with `size`, a JPEG of at most that many pixels a side."""
        if size is not None and not 1 <= size <= MAX_THUMBNAIL:
            raise UsageError(f"size {size}: expected 1 to {MAX_THUMBNAIL} pixels")
        if not 0 <= row_id <= MAX_ID:
            raise NotFoundError(f"id {row_id}: ids are 63-bit numbers")
        data, media_type = await searcher.image(index, row_id, size)
        kept = {"Cache-Control": "private, max-age=3600"}
        return Response(data, media_type=media_type, headers=kept)


def _add_status(app: FastAPI, searcher: Searcher) -> None:
    @app.get("/indices")
    async def indices() -> Response:
        """What is served: names, modalities, versions, sizes and columns."""
        return json_reply(searcher.catalog.to_json())

    @app.get("/metrics")
    async def metrics() -> Response:
        """What this ingress process has counted, for Prometheus."""
        return Response(searcher.meter.exposition(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/healthz")
    async def healthz() -> Response:
        """Answers as long as this process does."""
        return json_reply({"status": "ok"})

    @app.get("/readyz", responses=openapi.replies())
    async def readyz() -> Response:
        """Whether queries can be answered now, and by how much of the service."""
        return json_reply({"status": "ok", "groups": searcher.ready()})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _static("index.html")

    @app.get("/web/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _static(name)


def _static(name: str) -> Response:
    if name not in PAGE_TYPES:
        raise NotFoundError(f"no file {name}")
    return Response((PAGE / name).read_bytes(), media_type=PAGE_TYPES[name])
