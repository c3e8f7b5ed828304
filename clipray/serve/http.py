"""The HTTP API, over anything that answers queries.

Requests are validated here and errors become JSON with the right status. Where the answers come
from is not known: a test puts an in-process index behind the same routes.
"""

import asyncio
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from clipray import __version__
from clipray.errors import ClipRayError, NotFoundError, UnavailableError, UsageError, plain
from clipray.query import Query, Term
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
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def http_app(searcher: Searcher) -> FastAPI:
    """The routes over `searcher`."""
    app = FastAPI(title="clipray", version=__version__, docs_url=None, redoc_url=None)
    app.middleware("http")(_secure)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(ClipRayError)(_failed)
    _add_search(app, searcher)
    _add_pictures(app, searcher)
    _add_status(app, searcher)
    _add_page(app)
    return app


def _add_search(app: FastAPI, searcher: Searcher) -> None:
    @app.post("/search")
    async def search(query: Annotated[Query | list[Query], Body()]) -> Any:
        """Search with one query, or with a list of them; each gets its reply."""
        if isinstance(query, Query):
            return JSONResponse((await searcher.search(query)).to_json())
        if len(query) > MAX_QUERIES:
            raise UsageError(f"{len(query)} queries in one request, at most {MAX_QUERIES}")
        replies = await asyncio.gather(*[searcher.search(one) for one in query])
        return JSONResponse([reply.to_json() for reply in replies])

    @app.post("/embed")
    async def embed(term: Term) -> Any:
        """The unit vector of a text or an image."""
        vector = await searcher.embed(term)
        return JSONResponse({"embedding": vector.tolist(), "dim": len(vector)})


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
        return JSONResponse(searcher.catalog.to_json())

    @app.get("/healthz")
    @app.get("/readyz")
    async def healthz() -> Any:
        """Answers when the service does; replicas are started before it is reachable."""
        return JSONResponse({"status": "ok"})


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return _static("index.html")

    @app.get("/web/{name}", include_in_schema=False)
    async def static(name: str) -> Response:
        return _static(name)


def _static(name: str) -> Response:
    if name not in PAGE_TYPES:
        return _error(404, "NotFound", f"no file {name}")
    return Response((PAGE / name).read_bytes(), media_type=PAGE_TYPES[name])


async def _secure(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
    response = await proceed(request)
    response.headers.update(HEADERS)
    return response


async def _invalid(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, RequestValidationError)  # noqa: S101  as registered
    # A body that is one query is also tried as a list, and the other way round.
    other = "function-after" if isinstance(error.body, list) else "list["
    details = [d for d in error.errors() if not str((*d["loc"], "", "")[1]).startswith(other)]
    told = "; ".join(f"{_place(detail)}{detail['msg']}" for detail in details[:3])
    return _error(400, "QueryError", told.replace("Value error, ", ""))


async def _failed(request: Request, error: Exception) -> Response:
    del request
    cause = plain(error)
    status = 400 if isinstance(cause, UsageError) else 500
    if isinstance(cause, NotFoundError):
        status = 404
    elif isinstance(cause, UnavailableError):
        status = 503
    return _error(status, type(cause).__name__, str(cause))


def _place(detail: Any) -> str:
    parts = [str(part) for part in detail["loc"] if part != "body"]
    path = ".".join(part for part in parts if "[" not in part)
    return f"{path}: " if path else ""


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, status)
