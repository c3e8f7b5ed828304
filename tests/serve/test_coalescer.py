"""What waits at the same time is asked together, and everyone gets his own answer."""

import asyncio

import pytest

from clipray.serve.coalescer import Coalescer


class Doubling:
    """Doubles numbers, refuses negative ones, and remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.running = self.peak = 0

    async def __call__(self, items):
        self.batches.append(list(items))
        self.running += 1
        self.peak = max(self.peak, self.running)
        await self.gate.wait()
        await asyncio.sleep(0)
        self.running -= 1
        if 13 in items:
            raise LookupError("13")
        return [ValueError(str(item)) if item < 0 else 2 * item for item in items]


def together(coalescer, items):
    return asyncio.gather(*[coalescer.ask(item) for item in items], return_exceptions=True)


def test_items_of_one_moment_go_in_one_call():
    async def main():
        work = Doubling()
        assert await together(Coalescer(work, most=100), range(7)) == [0, 2, 4, 6, 8, 10, 12]
        return work.batches

    assert asyncio.run(main()) == [[0, 1, 2, 3, 4, 5, 6]]


def test_what_comes_while_calls_are_on_their_way_gathers():
    async def main():
        work = Doubling()
        coalescer = Coalescer(work, most=4, at_once=2)
        work.gate.clear()
        asked = []
        for item in range(12):
            asked.append(asyncio.ensure_future(coalescer.ask(item)))
            await asyncio.sleep(0.001)
        assert work.batches == [[0], [1]]
        work.gate.set()
        assert await asyncio.gather(*asked) == [2 * item for item in range(12)]
        return work

    work = asyncio.run(main())
    assert work.batches[2:] == [[2, 3, 4, 5], [6, 7, 8, 9], [10, 11]]
    assert work.peak == 2


def test_an_error_reaches_whom_it_belongs_to():
    async def main():
        work = Doubling()
        coalescer = Coalescer(work, most=3)
        return await together(coalescer, [1, -2, 3, 13, 4])

    one, two, three, four, five = asyncio.run(main())
    assert (one, three) == (2, 6)
    assert isinstance(two, ValueError)
    assert isinstance(four, LookupError)
    assert isinstance(five, LookupError)


def test_nobody_works_for_those_who_have_gone():
    async def main():
        work = Doubling()
        coalescer = Coalescer(work, most=10, at_once=1)
        work.gate.clear()
        first = asyncio.ensure_future(coalescer.ask(1))
        await asyncio.sleep(0.001)
        gone, stays = (asyncio.ensure_future(coalescer.ask(item)) for item in (2, 3))
        await asyncio.sleep(0.001)
        gone.cancel()
        await asyncio.sleep(0.001)
        work.gate.set()
        assert await first == 2
        assert await stays == 6
        with pytest.raises(asyncio.CancelledError):
            await gone
        return work.batches

    assert asyncio.run(main()) == [[1], [3]]
