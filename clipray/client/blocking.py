"""The client for code without an event loop: one in a thread of its own drives `AsyncClient`."""

import asyncio
import os
import weakref
from collections.abc import Coroutine, Iterable
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Lock, Thread
from typing import Any, Self, TypeVar, Unpack

from clipray.client.ask import Ask
from clipray.client.asynchronous import AsyncClient
from clipray.client.found import Found, Vector
from clipray.errors import UsageError

ResultT = TypeVar("ResultT")


class Client:
    """`AsyncClient` for ordinary code: the same methods, each waits for its answer.

    Any number of threads may use one client at once. A process forked later needs one of its own.

    Args:
        url: as all others, see `AsyncClient`.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        retries: int = 3,
        backoff_s: float = 0.1,
        connections: int = 32,
        max_reply_bytes: int = 256 << 20,
    ) -> None:
        self._client = AsyncClient(
            url,
            key,
            timeout_s=timeout_s,
            retries=retries,
            backoff_s=backoff_s,
            connections=connections,
            max_reply_bytes=max_reply_bytes,
        )
        self._loop = asyncio.new_event_loop()
        self._lock = Lock()
        self._process = os.getpid()
        self._thread = Thread(target=_drive, args=(self._loop,), name="clipray-client", daemon=True)
        self._thread.start()
        self._end = weakref.finalize(self, _end, self._loop, self._client, self._process)

    def __repr__(self) -> str:
        return f"Client('{self.url}')"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def url(self) -> str:
        """Of the service."""
        return self._client.url

    def close(self) -> None:
        """Close the connections and end the thread; calls that still wait fail."""
        if os.getpid() != self._process:
            return
        with self._lock:
            self._end()
        self._thread.join()

    def search(self, text: str | None = None, /, **ask: Unpack[Ask]) -> Found:
        """As `AsyncClient.search`."""
        return self._wait(self._client.search(text, **ask))

    def search_many(self, queries: Iterable[Ask]) -> list[Found]:
        """As `AsyncClient.search_many`."""
        return self._wait(self._client.search_many(queries))

    def embed(
        self,
        text: str | None = None,
        image: bytes | Path | None = None,
        image_url: str | None = None,
    ) -> Vector:
        """As `AsyncClient.embed`."""
        return self._wait(self._client.embed(text, image, image_url))

    def picture(self, index: str, row_id: int, size: int | None = None) -> bytes:
        """As `AsyncClient.picture`."""
        return self._wait(self._client.picture(index, row_id, size))

    def indices(self) -> dict[str, Any]:
        """As `AsyncClient.indices`."""
        return self._wait(self._client.indices())

    def refresh(self) -> dict[str, Any]:
        """As `AsyncClient.refresh`."""
        return self._wait(self._client.refresh())

    def ready(self) -> bool:
        """As `AsyncClient.ready`."""
        return self._wait(self._client.ready())

    def _wait(self, work: Coroutine[Any, Any, ResultT]) -> ResultT:
        try:
            self._require_own()  # first: after a fork nobody may be left to release the lock
            with self._lock:
                self._require_open()
                future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except UsageError:
            work.close()
            raise
        try:
            return future.result()
        except CancelledError:
            raise UsageError(f"the client of {self.url} was closed during a call") from None
        finally:
            future.cancel()  # after an interrupt; nothing happens to one that is done

    def _require_own(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                f"the client of {self.url} was made before this process was forked; make a new one"
            )

    def _require_open(self) -> None:
        if not self._end.alive:
            raise UsageError(f"the client of {self.url} is closed; make a new one")


def _drive(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _end(loop: asyncio.AbstractEventLoop, client: AsyncClient, process: int) -> None:
    """End the loop without waiting for it: the collector may call this in any thread."""
    if os.getpid() == process:
        asyncio.run_coroutine_threadsafe(_finish(loop, client), loop)


async def _finish(loop: asyncio.AbstractEventLoop, client: AsyncClient) -> None:
    try:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await client.close()
        await loop.shutdown_default_executor()
    finally:
        loop.stop()
