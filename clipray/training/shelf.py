"""Things that are costly to open: the last few stay open, and none is closed while it is used."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

KeyT = TypeVar("KeyT")
ValueT = TypeVar("ValueT")


@dataclass
class _Item(Generic[ValueT]):
    stack: ExitStack = field(default_factory=ExitStack)
    opening: Lock = field(default_factory=Lock)
    value: ValueT | None = None
    users: int = 0


class Shelf(Generic[KeyT, ValueT]):
    """Keeps the `room` things that were used last; thread-safe.

    Args:
        opened: gives the thing of a key, which the end of its block closes.
        room: how many stay open while nobody uses them.
    """

    def __init__(self, opened: Callable[[KeyT], AbstractContextManager[ValueT]], room: int) -> None:
        self._opened, self._room = opened, room
        self._items: OrderedDict[KeyT, _Item[ValueT]] = OrderedDict()
        self._lock = Lock()

    @contextmanager
    def take(self, key: KeyT) -> Iterator[ValueT]:
        """A thing, open for the block; raises what opening it does."""
        item = self._find(key)
        try:
            yield self._value(item, key)
        finally:
            for idle in self._put_back(item):
                idle.stack.close()

    def _find(self, key: KeyT) -> _Item[ValueT]:
        with self._lock:
            item = self._items.setdefault(key, _Item())
            self._items.move_to_end(key)
            item.users += 1
            return item

    def _value(self, item: _Item[ValueT], key: KeyT) -> ValueT:
        with item.opening:  # others wait for this one thing only
            if item.value is None:
                item.value = item.stack.enter_context(self._opened(key))
            return item.value

    def _put_back(self, item: _Item[ValueT]) -> list[_Item[ValueT]]:
        """Takes what is one too many from the shelf."""
        with self._lock:
            item.users -= 1
            excess = max(0, len(self._items) - self._room)
            if not excess:
                return []
            idle = [key for key, other in self._items.items() if not other.users]
            return [self._items.pop(key) for key in idle[:excess]]
