"""What a reply with an error status means."""

import json
import re
import time
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any

from clipray import errors
from clipray.errors import (
    AccessError,
    ClipRayError,
    NotFoundError,
    OverloadedError,
    QueryError,
    UnavailableError,
)

MAX_MESSAGE = 2_000  # characters
KINDS: dict[int, type[ClipRayError]] = {
    401: AccessError,
    403: AccessError,
    404: NotFoundError,
    429: OverloadedError,
    503: UnavailableError,
}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back over HTTP from the address `where`."""

    where: str
    status: int
    media_type: str
    data: bytes
    retry_after: str | None = None
    location: str | None = None

    def json(self) -> Any:
        """The value in the body.

        Raises:
            ClipRayError: the body is no JSON.
        """
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError):
            raise self.strange() from None

    def strange(self) -> ClipRayError:
        """That this is no reply of ours."""
        found = f"status {self.status}, {len(self.data)} bytes of {self.media_type}"
        return ClipRayError(f"{self.where}: no answer of a clipray service ({found})")

    @property
    def wait_s(self) -> float:
        """Seconds that the service wants to be left alone; 0 where it does not say."""
        told = (self.retry_after or "").strip()
        if re.fullmatch(r"[0-9]{1,9}", told):
            return float(told)
        try:
            return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
        except (ValueError, OverflowError):
            return 0.0


def refusal(reply: Reply) -> ClipRayError:
    """The error of the class that the service names, otherwise of one that fits the status.

    | status | class |
    |---|---|
    | 401, 403 | `AccessError` |
    | 404 | `NotFoundError` |
    | 429 | `OverloadedError` |
    | other 4xx | `QueryError` |
    | 503 | `UnavailableError` |
    | any other | `ClipRayError` |
    """
    told = _error_of(reply)
    kind = errors.named(str(told.get("type"))) or KINDS.get(reply.status)
    if kind is None:
        kind = QueryError if 400 <= reply.status < 500 else ClipRayError
    message = told.get("message")
    return kind(str(message)[:MAX_MESSAGE] if message else _without_reason(reply))


def _error_of(reply: Reply) -> dict[str, Any]:
    try:
        told = json.loads(reply.data)
    except (ValueError, RecursionError):
        return {}
    error = told.get("error") if isinstance(told, dict) else None
    return error if isinstance(error, dict) else {}


def _without_reason(reply: Reply) -> str:
    if reply.location and reply.status < 400:
        return f"{reply.where}: it redirects to {reply.location}; give the client that address"
    return str(reply.strange())
