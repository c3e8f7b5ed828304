"""Work that waits at the same time is done together: one call for all of it.

There is no window to wait for: what comes alone goes at once, and while calls are on their way
what comes meanwhile gathers. So the more is asked, the larger the calls. Neither Ray nor what the
work is is known here.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

Work = Callable[[Sequence[Item]], Awaitable[Sequence[Result | BaseException]]]


@dataclass(frozen=True, slots=True)
class _Waiting(Generic[Item, Result]):
    item: Item
    done: "asyncio.Future[Result]" = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )


class Coalescer(Generic[Item, Result]):
    """Gathers items for calls of `work`.

    Args:
        work: answers each item of a batch, in its order, with a result or an exception.
        most: items in one call.
        at_once: calls on their way.
    """

    def __init__(self, work: Work[Item, Result], most: int, at_once: int = 2) -> None:
        self._work = work
        self._most = most
        self._free = at_once
        self._waiting: deque[_Waiting[Item, Result]] = deque()
        self._calls: set[asyncio.Task[None]] = set()  # or the collector would take them

    async def ask(self, item: Item) -> Result:
        """The result for one item.

        Raises:
            Exception: what `work` gave for it, or raised for all.
        """
        waiting: _Waiting[Item, Result] = _Waiting(item)
        self._waiting.append(waiting)
        if self._free:  # after what else is ready now, which may have more to ask
            asyncio.get_running_loop().call_soon(self._send)
        return await waiting.done

    def _send(self) -> None:
        while self._free and self._waiting:
            count = min(self._most, len(self._waiting))
            batch = [self._waiting.popleft() for _ in range(count)]
            batch = [waiting for waiting in batch if not waiting.done.done()]  # nobody waits
            if batch:
                self._free -= 1
                call = asyncio.get_running_loop().create_task(self._call(batch))
                self._calls.add(call)
                call.add_done_callback(self._calls.discard)

    async def _call(self, batch: Sequence[_Waiting[Item, Result]]) -> None:
        results: Sequence[Result | BaseException]
        try:
            results = await self._work([waiting.item for waiting in batch])
        except Exception as error:  # noqa: BLE001  it belongs to those who wait
            results = [error] * len(batch)
        except asyncio.CancelledError:
            for waiting in batch:
                waiting.done.cancel()
            raise
        finally:
            self._free += 1
        for waiting, result in zip(batch, results, strict=True):
            if waiting.done.done():
                continue
            if isinstance(result, BaseException):
                waiting.done.set_exception(result)
            else:
                waiting.done.set_result(result)
        self._send()
