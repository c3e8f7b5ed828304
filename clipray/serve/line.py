"""The line to one group of replicas: deadlines, repetition, an optional hedge, and patience.

Serve does not repeat a call whose replica died, and waits without end for a replica where there is
none. A search can be repeated without harm, so here it is: once where a replica does not answer,
and several times where calls are lost, for all the replicas that a call meets may be ending.

A group that has failed is tried by one call at a time, and briefly, until it answers again; the
other calls fail at once. Only the first of these trials is waited for: later ones are made beside
the calls, or each query of a patient client would wait for a group that is away for long. What has
been away so is trusted no longer than a trial until it has answered twice: one that comes and goes
would otherwise have every other query wait to its deadline.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

from pydantic import Field

from clipray.config import Config
from clipray.errors import ClipRayError, UnavailableError, plain

log = logging.getLogger(__name__)

PAUSES_S = (0.0, 0.05, 0.2, 0.5)  # before a lost call is repeated

Send = Callable[..., Awaitable[Any]]


class LineOptions(Config):
    """How long groups are waited for."""

    deadline_s: float = Field(5.0, gt=0, description="seconds for one call and what repeats it")
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
        self._trial: asyncio.Future[Any] | None = None  # whether it answers again
        self._away = False  # for longer than one trial, and not answered twice since
        self._took_s = 0.0

    async def call(self, method: str, *arguments: Any) -> Any:
        """What the group answers.

        Raises:
            UnavailableError: no replica answered in time.
            ClipRayError: the error of the method, which no repetition mends.
        """
        if self.up:
            seconds = self._patience_s if self._away else self._options.deadline_s
            return await self._timed(seconds, method, arguments)
        if self._trial is None or self._trial.done():
            self._trial = asyncio.ensure_future(self._timed(self._patience_s, method, arguments))
            self._trial.add_done_callback(_seen)
            if not self._away:
                return await asyncio.shield(self._trial)
        raise UnavailableError(f"{self.name} does not answer")

    @property
    def _patience_s(self) -> float:
        patience_s = max(self._options.patience_s, 3 * self._took_s)
        return min(patience_s, self._options.deadline_s)

    async def _timed(self, seconds: float, method: str, arguments: tuple[Any, ...]) -> Any:
        began = asyncio.get_running_loop().time()
        try:
            answer = await self._repeated(began + seconds, method, arguments)
        except ClipRayError:
            self._answers()
            raise
        except Exception as error:
            self._failed(error)
            raise UnavailableError(f"{self.name} does not answer") from error
        self._took_s = asyncio.get_running_loop().time() - began
        self._answers()
        return answer

    async def _repeated(self, until: float, method: str, arguments: tuple[Any, ...]) -> Any:
        now = asyncio.get_running_loop().time()
        limit, pauses = now + (until - now) / 2, iter(PAUSES_S)
        while True:
            try:
                async with asyncio.timeout_at(limit):
                    return await self._hedged(method, arguments)
            except TimeoutError:
                if limit == until:
                    raise
                limit = until
            except Exception as error:
                if isinstance(plain(error), ClipRayError):
                    raise plain(error) from None
                pause_s = next(pauses, None)
                if pause_s is None:
                    raise
                log.debug("%s: again after %r", self.name, error)
                await asyncio.sleep(pause_s)

    async def _hedged(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """The first answer of two replicas, the second being asked only after a while."""
        first = asyncio.ensure_future(self._sent(method, arguments))
        if self._options.hedge_s is None:
            return await first
        calls = {first}
        try:
            done, _ = await asyncio.wait(calls, timeout=self._options.hedge_s)
            if not done:
                calls.add(asyncio.ensure_future(self._sent(method, arguments)))
                done, _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
            return next(iter(done)).result()
        finally:
            for call in calls:
                call.cancel()

    async def _sent(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """One call. An end that came from the other side is an error, and no end of this task."""
        try:
            return await self._send(method, *arguments)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            raise ConnectionError("the call was cancelled on its way") from None

    def _answers(self) -> None:
        self._away = self._away and not self.up
        self.up = True

    def _failed(self, error: BaseException) -> None:
        if self.up:
            log.warning("%s does not answer: %r", self.name, error)
        self._away = self._away or not self.up
        self.up = False


def _seen(trial: asyncio.Future[Any]) -> None:
    """Nobody need wait for a trial, so nobody misses its error."""
    if not trial.cancelled():
        trial.exception()
