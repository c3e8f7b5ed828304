"""Asking an ASGI app without a server: what a request is made of, and what came back."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message


@dataclass
class Answer:
    """What the app has sent."""

    messages: list[Message] = field(default_factory=list)

    @property
    def status(self) -> int:
        return self.messages[0]["status"]

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.messages[0]["headers"]}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def error(self) -> dict[str, str]:
        return json.loads(self.body)["error"]


def scope(method: str, path: str, headers: dict[str, str], **more: Any) -> dict[str, Any]:
    pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    asked = {"type": "http", "method": method, "path": path, "headers": pairs}
    return {**asked, "query_string": b"", "root_path": "", "client": ("198.51.100.7", 1), **more}


async def ask(
    app: ASGIApp,
    method: str = "GET",
    path: str = "/search",
    parts: Iterable[bytes] | AsyncIterator[bytes] = (),
    **headers: str,
) -> Answer:
    """One request; the length of a body that is a tuple is announced, else it is chunked."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if isinstance(parts, tuple):
        named.setdefault("content-length", str(sum(len(part) for part in parts)))
    else:
        named.setdefault("transfer-encoding", "chunked")
    answer, incoming = Answer(), _messages(parts)

    async def receive() -> Message:
        return await anext(incoming, {"type": "http.disconnect"})

    async def send(message: Message) -> None:
        answer.messages.append(message)

    await app(scope(method, path, named), receive, send)
    return answer


async def _messages(parts: Iterable[bytes] | AsyncIterator[bytes]) -> AsyncIterator[Message]:
    if isinstance(parts, AsyncIterator):
        async for part in parts:
            yield {"type": "http.request", "body": part, "more_body": True}
    else:
        for part in parts:
            yield {"type": "http.request", "body": part, "more_body": True}
    yield {"type": "http.request", "body": b"", "more_body": False}
    await asyncio.Event().wait()
