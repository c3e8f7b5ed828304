"""One request's reply on its way out: headers are added, status and bytes are noted.

A reply of status 500 is held back until the app has returned, because frameworks answer with one
of their own and raise afterwards; then ours is sent instead.
"""

import json
import logging
from time import perf_counter

from starlette.types import Message, Receive, Scope, Send

from clipray.serve.limits import linger
from clipray.serve.refusal import RETRY, Headers, Refusal

access = logging.getLogger("clipray.access")

JSON_TYPE = (b"content-type", b"application/json")
GONE = 499  # in the log, where the client did not wait for a reply
MAX_LOGGED_PATH = 200


class Exchange:
    """Stands between the app and the server's `send`.

    Args:
        scope: of the request.
        send: the server's.
        headers: given to every reply that does not set them itself.
        cors: given to every reply.
    """

    __slots__ = ("_cors", "_headers", "_held", "_scope", "_send", "_sent", "_since", "broken",
                 "status")  # fmt: skip

    def __init__(self, scope: Scope, send: Send, headers: Headers, cors: Headers) -> None:
        self._scope, self._send = scope, send
        self._headers, self._cors = headers, cors
        self._held: list[Message] = []
        self._sent = 0
        self._since = perf_counter()
        self.status = 0
        self.broken = False  # the connection, while we were sending

    @property
    def started(self) -> bool:
        """Whether it is too late for another reply."""
        return self.status != 0 and not self._held

    async def send(self, message: Message) -> None:
        """What the app sends with."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": self._completed(message.get("headers", ()))}
        elif message["type"] == "http.response.body":
            self._sent += len(message.get("body", b""))
        if self.status == 500:
            self._held.append(message)
        else:
            await self._forward(message)

    async def finish(self) -> None:
        """Send what was held back."""
        for message in self._held:
            await self._forward(message)

    async def reply(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Send a whole reply."""
        length = (b"content-length", b"%d" % len(body))
        headers = (*headers, length) if status != 204 else headers
        await self._start(status, headers)
        await self._forward({"type": "http.response.body", "body": body})

    async def refuse(self, refusal: Refusal) -> None:
        """Send an error."""
        self._sent = len(refusal.body)
        await self.reply(refusal.status, (JSON_TYPE, *refusal.headers), refusal.body)

    async def refuse_unread(self, refusal: Refusal, receive: Receive, most: int) -> None:
        """Send an error while the body is still coming, then end the connection.

        Args:
            refusal: the error.
            receive: the server's.
            most: bytes to throw away before.
        """
        body = refusal.body
        self._sent = len(body)
        length = (b"content-length", b"%d" % len(body))
        close = (b"connection", b"close")
        await self._start(refusal.status, (JSON_TYPE, length, close, *refusal.headers))
        await self._forward({"type": "http.response.body", "body": body, "more_body": True})
        await linger(receive, most)
        await self._forward({"type": "http.response.body", "body": b""})

    def log(self) -> None:
        """Write the line of the access log; it holds no query, body or key."""
        client = self._scope.get("client")
        line = {
            "method": self._scope["method"],
            "path": self._scope["path"][:MAX_LOGGED_PATH],
            "status": self.status or GONE,
            "ms": round((perf_counter() - self._since) * 1000, 2),
            "bytes": self._sent,
            "client": client[0] if client else "",
        }
        access.info("%s", json.dumps(line))

    async def _start(self, status: int, headers: Headers) -> None:
        self.status, self._held = status, []
        start = {"type": "http.response.start", "status": status}
        await self._forward(start | {"headers": self._completed(headers)})

    def _completed(self, given: Headers) -> list[tuple[bytes, bytes]]:
        names = {name for name, _ in given}
        headers = [*given, *(one for one in self._headers if one[0] not in names), *self._cors]
        if self.status in (429, 503) and b"retry-after" not in names:
            headers += RETRY
        return headers

    async def _forward(self, message: Message) -> None:
        try:
            await self._send(message)
        except OSError:
            self.broken = True
            raise
