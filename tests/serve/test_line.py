"""Deadlines, the retry, the hedge, and what happens while a group is away."""

import asyncio
import time

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
        if isinstance(step, Exception):
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


def test_a_group_that_is_away_is_tried_by_one_call_at_a_time():
    async def main():
        replicas = Replicas(9.0, 9.0, 9.0, 9.0)
        line, call = ask(replicas)
        with pytest.raises(UnavailableError):
            await call
        began = time.perf_counter()
        lost = await asyncio.gather(
            *[line.call("search") for _ in range(50)], return_exceptions=True
        )
        assert time.perf_counter() - began < 0.15  # its patience, not 50 deadlines
        assert all(isinstance(one, UnavailableError) for one in lost)
        assert replicas.calls == 4
        assert await line.call("search") == "ok"
        assert line.up

    asyncio.run(main())
