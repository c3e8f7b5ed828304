"""Replies in JSON, and errors as replies with the right status."""

import json
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from clipray.config import keys, near_key
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
from clipray.query import Query
from clipray.serve.meter import Meter

MAX_TOLD = 1_000  # characters of a refusal, which may repeat what was asked
RETRY_S = 1
KEYS = tuple(keys(Query))  # clip-retrieval's bodies have others

# The first that fits counts.
STATUSES: tuple[tuple[type[BaseException], int], ...] = (
    (OverloadedError, 429),
    (UnavailableError, 503),
    (NotFoundError, 404),
    (AccessError, 403),
    (UsageError, 400),
)


def json_reply(tree: Any) -> Response:
    """A reply that is no error."""
    return Response(to_json(tree), media_type="application/json")


class Refusals:
    """Errors → replies.

    Args:
        meter: counts them.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter

    def of(self, app: FastAPI) -> None:
        """Answer what goes wrong in an application."""

        async def refused(request: Request, error: Exception) -> Response:
            del request
            return self.reply(error)

        for kind in (ValidationError, RequestValidationError, ClipRayError):
            app.exception_handler(kind)(refused)
        app.exception_handler(HTTPException)(self._unrouted)

    def reply(self, error: Exception) -> Response:
        """What to say of a body that is no query, or of what cannot be had."""
        if isinstance(error, ValidationError | RequestValidationError):
            known = KEYS if isinstance(error, ValidationError) else ()
            told = "; ".join(_told(detail, known) for detail in error.errors()[:3])
            error = QueryError(told.replace("Value error, ", ""))
        cause = plain(error)
        self._meter.failed(cause)
        status = next((status for kind, status in STATUSES if isinstance(cause, kind)), 500)
        return _reply(status, type(cause).__name__, str(cause))

    async def _unrouted(self, request: Request, error: Exception) -> Response:
        """No such route, or not with this method."""
        assert isinstance(error, HTTPException)  # noqa: S101  as registered
        kind = "NotFoundError" if error.status_code == 404 else "QueryError"
        allowed = (error.headers or {}).get("Allow")
        told = f"{request.method} {request.url.path}: {error.detail}"
        return _reply(error.status_code, kind, f"{told}; use {allowed}" if allowed else told)


def _told(detail: Any, known: Sequence[str]) -> str:
    place = [part for part in detail["loc"] if part != "body"]
    path = ".".join(str(part) for part in place)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{path}'{near_key(place, known)}"
    return f"{path}: {detail['msg']}" if path else str(detail["msg"])


def _reply(status: int, kind: str, message: str) -> Response:
    told = json.dumps({"error": {"type": kind, "message": message[:MAX_TOLD]}})  # ASCII
    again = {"Retry-After": str(RETRY_S)} if status in (429, 503) else None
    return Response(told, status, media_type="application/json", headers=again)
