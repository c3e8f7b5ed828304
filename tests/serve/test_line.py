"""Deadlines, the retry, the hedge, and what happens while a group is away."""

import asyncio
import time
from contextlib import suppress

import pytest

from clipray.errors import QueryError, UnavailableError
from clipray.serve.line import Line, LineOptions


class Replicas:
    """Answers call after call as it is told: a value, an exception, or seconds of silence."""

    def __init__(self, *script) -> None:
        self.script = list(script)
        self.calls = 0

    async def __call__(self, method, *arguments):
        self.calls += 1
        step = self.script.pop(0) if self.script else "ok"
        if isinstance(step, float):
            await asyncio.sleep(step)
            return "late"
        if isinstance(step, BaseException):
            raise step
        return step


def ask(replicas, **options):
    line = Line("group", replicas, LineOptions(**{"deadline_s": 0.2, "patience_s": 0.05} | options))
    return line, line.call("search", 1)


def test_a_call_that_a_dying_replica_loses_is_repeated_once():
    replicas = Replicas(ConnectionError("died"), "found")
    line, call = ask(replicas)
    assert asyncio.run(call) == "found"
    assert replicas.calls == 2
    assert line.up


def test_a_replica_that_says_nothing_is_left_for_another_at_half_time():
    replicas = Replicas(9.0, "found")
    began = time.perf_counter()
    assert asyncio.run(ask(replicas)[1]) == "found"
    assert 0.09 < time.perf_counter() - began < 0.19


def test_the_deadline_holds_for_both_tries():
    replicas = Replicas(9.0, 9.0)
    began = time.perf_counter()
    line, call = ask(replicas)
    with pytest.raises(UnavailableError, match="group does not answer"):
        asyncio.run(call)
    assert time.perf_counter() - began < 0.4
    assert replicas.calls == 2
    assert not line.up


def test_what_the_method_refuses_is_not_repeated():
    replicas = Replicas(QueryError("no such column"))
    line, call = ask(replicas)
    with pytest.raises(QueryError, match="no such column"):
        asyncio.run(call)
    assert replicas.calls == 1
    assert line.up


def test_a_second_replica_is_asked_when_the_first_hesitates():
    replicas = Replicas(0.08, "found")
    began = time.perf_counter()
    assert asyncio.run(ask(replicas, hedge_s=0.01)[1]) == "found"
    assert time.perf_counter() - began < 0.07
    assert replicas.calls == 2


def test_calls_are_repeated_while_all_replicas_that_are_met_end():
    replicas = Replicas(*[ConnectionError("died")] * 3, "found")
    line, call = ask(replicas, deadline_s=1.0)
    assert asyncio.run(call) == "found"
    assert replicas.calls == 4
    assert line.up


def test_a_call_that_the_other_side_cancels_is_repeated():
    replicas = Replicas(asyncio.CancelledError(), "found")
    line, call = ask(replicas)
    assert asyncio.run(call) == "found"
    assert replicas.calls == 2
    assert line.up


def test_a_call_that_this_side_cancels_is_not():
    async def main():
        replicas = Replicas(9.0)
        line, call = ask(replicas)
        waiting = asyncio.ensure_future(call)
        await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert replicas.calls == 1
        assert line.up

    asyncio.run(main())


class Away:
    """Replicas that say nothing until they are back."""

    def __init__(self) -> None:
        self.calls = 0
        self.back = False

    async def __call__(self, method, *arguments):
        self.calls += 1
        if not self.back:
            await asyncio.sleep(9)
        return "ok"


async def lost(line):
    with pytest.raises(UnavailableError):
        await line.call("search")


def test_a_group_that_is_away_is_tried_by_one_call_at_a_time():
    async def main():
        replicas = Away()
        line, call = ask(replicas)
        with pytest.raises(UnavailableError):
            await call
        began, calls = time.perf_counter(), replicas.calls
        await asyncio.gather(*[lost(line) for _ in range(50)])
        assert time.perf_counter() - began < 5  # its patience, not 50 deadlines
        assert replicas.calls <= calls + 2
        assert not line.up

    asyncio.run(main())


def test_the_first_call_after_a_failure_is_answered_if_it_can_be():
    async def main():
        replicas = Away()
        line, call = ask(replicas)
        with pytest.raises(UnavailableError):
            await call
        replicas.back = True
        assert await line.call("search") == "ok"
        assert line.up

    asyncio.run(main())


def test_a_group_that_stays_away_keeps_nobody_waiting():
    async def main():
        replicas = Away()
        line, call = ask(replicas, deadline_s=0.4, patience_s=0.4)
        with pytest.raises(UnavailableError):
            await call
        await lost(line)
        began, calls = time.perf_counter(), replicas.calls
        await lost(line)  # has a trial made, which takes its patience
        assert time.perf_counter() - began < 0.1
        await asyncio.sleep(0.05)
        assert replicas.calls == calls + 1
        replicas.back = True
        with suppress(UnavailableError):
            await line._trial
        assert await line.call("search") == "ok"

    asyncio.run(main())


def test_a_group_that_comes_and_goes_keeps_nobody_waiting_to_the_deadline():
    async def main():
        replicas = Away()
        line, call = ask(replicas, deadline_s=0.4, patience_s=0.05)
        with pytest.raises(UnavailableError):
            await call
        await lost(line)
        for _ in range(2):
            replicas.back = True
            await lost(line)  # the trial beside it is answered
            await asyncio.sleep(0.01)
            assert line.up
            replicas.back = False
            began = time.perf_counter()
            await lost(line)
            assert time.perf_counter() - began < 0.2
            await asyncio.sleep(0.06)
        replicas.back = True
        await lost(line)
        await asyncio.sleep(0.01)
        assert await line.call("search") == "ok"
        replicas.back = False
        began = time.perf_counter()
        await lost(line)  # answered twice, so it is trusted again
        assert time.perf_counter() - began > 0.3

    asyncio.run(main())
