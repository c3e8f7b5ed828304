"""Things that are costly to open: the last few stay open, and none is closed while it is used."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

ValueT = TypeVar("ValueT")


@dataclass
class _Item(Generic[ValueT]):
    stack: ExitStack = field(default_factory=ExitStack)
    opening: Lock = field(default_factory=Lock)
    value: ValueT | None = None
    users: int = 0


class Shelf(Generic[ValueT]):
    """Keeps the `room` things that were used last; thread-safe.

    Args:
        opened: gives the thing of a number, which the end of its block closes.
        room: how many stay open while nobody uses them.
    """

    def __init__(self, opened: Callable[[int], AbstractContextManager[ValueT]], room: int) -> None:
        self._opened, self._room = opened, room
        self._items: OrderedDict[int, _Item[ValueT]] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def take(self, number: int) -> Iterator[ValueT]:
        """A thing, open for the block; raises what opening it does."""
        item = self._find(number)
        try:
            yield self._value(item, number)
        finally:
            for idle in self._put_back(item):
                idle.stack.close()

    def _find(self, number: int) -> _Item[ValueT]:
        with self._lock:
            item = self._items.setdefault(number, _Item())
            self._items.move_to_end(number)
            item.users += 1
            return item

    def _value(self, item: _Item[ValueT], number: int) -> ValueT:
        with item.opening:  # others wait for this one thing only
            if item.value is None:
                item.value = item.stack.enter_context(self._opened(number))
            return item.value

    def _put_back(self, item: _Item[ValueT]) -> list[_Item[ValueT]]:
        """Takes what is one too many from the shelf."""
        with self._lock:
            item.users -= 1
            excess = max(0, len(self._items) - self._room)
            if not excess:
                return []
            idle = [number for number, other in self._items.items() if not other.users]
            return [self._items.pop(number) for number in idle[:excess]]
