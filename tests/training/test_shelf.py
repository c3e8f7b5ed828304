"""The last few stay open, none is closed while it is used, and each is opened once."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from clipray.training.shelf import Shelf


class Store:
    """Counts what is opened and closed; what is closed is gone."""

    def __init__(self, room):
        self.opened, self.closed = [], []
        self.shelf = Shelf(self._open, room)

    @contextmanager
    def _open(self, number):
        self.opened.append(number)
        yield f"thing {number}"
        self.closed.append(number)

    def touch(self, *numbers):
        for number in numbers:
            with self.shelf.take(number) as thing:
                assert thing == f"thing {number}"


def test_what_was_used_longest_ago_is_closed():
    store = Store(2)
    store.touch(1, 2, 1, 3)
    assert (store.opened, store.closed) == ([1, 2, 3], [2])
    store.touch(1, 3, 2)
    assert (store.opened, store.closed) == ([1, 2, 3, 2], [2, 1])


def test_nothing_is_closed_while_it_is_used():
    store = Store(1)
    with store.shelf.take(1):
        store.touch(2, 3)
        assert 1 not in store.closed
    store.touch(4)
    assert store.closed == [2, 3, 1]


def test_threads_open_a_thing_once_and_see_none_closed():
    store = Store(3)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(store.touch, [number % 3 for number in range(300)]))
    assert sorted(store.opened) == [0, 1, 2]
    barrier = threading.Barrier(8)

    def busy(number):
        with store.shelf.take(number):
            barrier.wait(timeout=10)
            assert number not in store.closed

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(busy, range(10, 18)))
    assert len(store.opened) - len(store.closed) == 3


def test_what_failed_to_open_is_tried_again():
    tries = []

    @contextmanager
    def opened(number):
        tries.append(number)
        if len(tries) == 1:
            raise OSError("not now")
        yield number

    shelf = Shelf(opened, 1)
    with pytest.raises(OSError, match="not now"), shelf.take(5):
        pass
    with shelf.take(5) as value:
        assert value == 5
