"""The line to one group of replicas: deadlines, one retry, an optional hedge, and patience.

Serve does not repeat a call whose replica died, and waits without end for a replica where there is
none. A search can be repeated without harm, so here it is, once, on what is left of the time. A
group that has failed is tried by one call at a time, and briefly, until it answers again; the
other calls fail at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field

from clipray.config import Config
from clipray.errors import ClipRayError, UnavailableError, plain

log = logging.getLogger(__name__)

Send = Callable[..., Awaitable[Any]]


class LineOptions(Config):
    """How long groups are waited for."""

    deadline_s: float = Field(5.0, gt=0, description="seconds for one call, its retry included")
    patience_s: float = Field(
        0.5, gt=0, description="seconds for a call to a group that did not answer the last one"
    )
    hedge_s: float | None = Field(
        None, gt=0, description="ask a second replica after this many seconds without an answer"
    )


class Line:
    """Calls to one group.

    Args:
        name: of the group, for messages.
        send: method name and arguments → what one of its replicas answers.
        options: how long is waited.
    """

    def __init__(self, name: str, send: Send, options: LineOptions) -> None:
        self.name = name
        self.up = True
        self._send = send
        self._options = options
        self._trying = False  # whether it answers again
        self._usual_s = 0.0

    async def call(self, method: str, *arguments: Any) -> Any:
        """What the group answers.

        Raises:
            UnavailableError: no replica answered in time.
            ClipRayError: the error of the method, which no retry mends.
        """
        if self.up:
            return await self._timed(self._options.deadline_s, method, arguments)
        if self._trying:
            raise UnavailableError(f"{self.name} does not answer")
        self._trying = True
        patience_s = max(self._options.patience_s, 3 * self._usual_s)
        try:
            return await self._timed(min(patience_s, self._options.deadline_s), method, arguments)
        finally:
            self._trying = False

    async def _timed(self, seconds: float, method: str, arguments: tuple[Any, ...]) -> Any:
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._tried_twice(began + seconds, method, arguments)
        except ClipRayError:
            self.up = True
            raise
        except Exception as error:
            self._failed(error)
            raise UnavailableError(f"{self.name} does not answer") from error
        self._usual_s = asyncio.get_running_loop().time() - began
        self.up = True
        return answer

    async def _tried_twice(self, until: float, method: str, arguments: tuple[Any, ...]) -> Any:
        now = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout_at(now + (until - now) / 2):
                return await self._hedged(method, arguments)
        except Exception as error:  # noqa: BLE001  as above
            if isinstance(plain(error), ClipRayError):
                raise plain(error) from None
            log.debug("%s: again after %r", self.name, error)
        try:
            async with asyncio.timeout_at(until):
                return await self._send(method, *arguments)
        except Exception as error:  # noqa: BLE001  as above
            raise plain(error) from None

    async def _hedged(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """The first answer of two replicas, the second being asked only after a while."""
        first = asyncio.ensure_future(self._send(method, *arguments))
        if self._options.hedge_s is None:
            return await first
        calls = {first}
        try:
            done, _ = await asyncio.wait(calls, timeout=self._options.hedge_s)
            if not done:
                calls.add(asyncio.ensure_future(self._send(method, *arguments)))
                done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for call in calls:
                call.cancel()

    def _failed(self, error: BaseException) -> None:
        if self.up:
            log.warning("%s does not answer: %r", self.name, error)
        self.up = False
