"""The HTTP API, over anything that answers queries.

Requests are validated here and errors become JSON with the right status. Where the answers come
from is not known: a test puts an in-process index behind the same routes.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails, to_json

from clipray import __version__
from clipray.errors import (
    AccessError,
    ClipRayError,
    NotFoundError,
    OverloadedError,
    QueryError,
    UnavailableError,
    UsageError,
    plain,
)
from clipray.query import Query, Term
from clipray.serve import openapi
from clipray.serve.knn_service import add_knn_service
from clipray.serve.meter import CONTENT_TYPE, Meter
from clipray.serve.raters import NO_RATERS, Raters
from clipray.serve.searcher import Searcher

MAX_QUERIES = 256
MAX_THUMBNAIL = 1_024
RETRY_S = 1
PAGE = files("clipray.serve") / "web"
PAGE_TYPES = {"index.html": "text/html", "app.js": "text/javascript", "style.css": "text/css"}
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}

# First match counts.
STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (OverloadedError, 429),
    (UnavailableError, 503),
    (NotFoundError, 404),
    (AccessError, 403),
    (UsageError, 400),
)

QUERY: TypeAdapter[Query | list[Query]] = TypeAdapter(Query)
QUERIES: TypeAdapter[Query | list[Query]] = TypeAdapter(list[Query])
TERM = TypeAdapter(Term)


def http_app(searcher: Searcher, raters: Raters = NO_RATERS) -> FastAPI:
    """The routes over `searcher`.

    Args:
        searcher: answers the queries.
        raters: what is configured for clip-retrieval's API.
    """
    app = FastAPI(title="clipray", version=__version__, docs_url=None, redoc_url=None)
    app.openapi = lambda: openapi.described(app)  # type: ignore[method-assign]
    app.middleware("http")(_secure)
    failures = Failures(searcher.meter)
    app.exception_handler(ValidationError)(failures.invalid)
    app.exception_handler(RequestValidationError)(failures.invalid)
    app.exception_handler(ClipRayError)(failures.failed)
    _add_search(app, searcher)
    _add_pictures(app, searcher)
    _add_status(app, searcher)
    _add_page(app)
    add_knn_service(app, searcher, raters)
    return app


def _add_search(app: FastAPI, searcher: Searcher) -> None:
    @app.post(
        "/search",
        openapi_extra=openapi.body(Query, openapi.QUERIES, many=True),
        responses=openapi.replies("Reply", many=True),
    )
    async def search(request: Request) -> Response:
        """Search with one query, or with a list of them; each gets its reply."""
        body = await request.body()
        began = time.perf_counter()
        query = (QUERIES if body.lstrip()[:1] == b"[" else QUERY).validate_json(body)
        searcher.meter.stage("parse", time.perf_counter() - began)
        if isinstance(query, Query):
            return _json((await searcher.search(query)).to_json())
        if len(query) > MAX_QUERIES:
            raise UsageError(f"{len(query)} queries in one request, at most {MAX_QUERIES}")
        replies = await asyncio.gather(*[searcher.search(one) for one in query])
        return _json([reply.to_json() for reply in replies])

    @app.post("/embed", openapi_extra=openapi.body(Term, openapi.TERMS))
    async def embed(request: Request) -> Response:
        """The unit vector of a text or an image."""
        vector = await searcher.embed(TERM.validate_json(await request.body()))
        return _json({"embedding": vector.tolist(), "dim": len(vector)})

    @app.post("/admin/refresh")
    async def refresh() -> Response:
        """Go over to the newest version of every index now, and say which are served."""
        return _json(await searcher.refresh())


def _add_pictures(app: FastAPI, searcher: Searcher) -> None:
    @app.get("/images/{index}/{row_id}")
    async def image(index: str, row_id: int, size: int | None = None) -> Response:
        """The picture of a row; with `size`, a JPEG of at most that many pixels a side."""
        if size is not None and not 1 <= size <= MAX_THUMBNAIL:
            raise UsageError(f"size {size}: expected 1 to {MAX_THUMBNAIL} pixels")
        data, media_type = await searcher.image(index, row_id, size)
        return Response(data, media_type=media_type, headers={"Cache-Control": "max-age=3600"})


def _add_status(app: FastAPI, searcher: Searcher) -> None:
    @app.get("/indices")
    async def indices() -> Any:
        """What is served: names, modalities, versions, sizes and columns."""
        return _json(searcher.catalog.to_json())

    @app.get("/metrics")
    async def metrics() -> Response:
        """What this ingress process has counted, for Prometheus."""
        return Response(searcher.meter.exposition(), headers={"Content-Type": CONTENT_TYPE})

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthz() -> Any:
        """Answers when the service does; replicas are started before it is reachable."""
        return _json({"status": "ok"})


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


async def _secure(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await proceed(request)
    response.headers.update(HEADERS)
    return response


class Failures:
    """Errors → replies with the right status.

    Args:
        meter: counts them.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    async def invalid(self, request: Request, error: Exception) -> Response:
        """A body that is no query."""
        del request
        assert isinstance(error, ValidationError | RequestValidationError)  # noqa: S101  as registered
        told = "; ".join(f"{_place(detail)}{detail['msg']}" for detail in error.errors()[:3])
        refusal = QueryError(told.replace("Value error, ", ""))
        self._meter.failed(refusal)
        return _refused(400, refusal)

    async def failed(self, request: Request, error: Exception) -> Response:
        """What was asked for cannot be had."""
        del request
        cause = plain(error)
        self._meter.failed(cause)
        status = next((status for kind, status in STATUSES if isinstance(cause, kind)), 500)
        response = _refused(status, cause)
        if status in (429, 503):
            response.headers["Retry-After"] = str(RETRY_S)
        return response


def _place(detail: ErrorDetails | Any) -> str:
    path = ".".join(str(part) for part in detail["loc"] if part != "body")
    return f"{path}: " if path else ""


def _json(tree: Any, status: int = 200) -> Response:
    return Response(to_json(tree), status, media_type="application/json")


def _refused(status: int, error: BaseException) -> Response:
    return _json({"error": {"type": type(error).__name__, "message": str(error)}}, status)
