"""Calls over a connection: answered each to its caller, and refused to strangers."""

import asyncio
import pickle
import time

import pytest

from clipray.errors import QueryError
from clipray.serve import wire
from clipray.serve.calls import Direct
from clipray.serve.wire import HEADER, SECRET_BYTES, Address, CallServer, Channel


class PuzzleError(Exception):
    """Cannot be unpickled: it is made of two values, and says one."""

    def __init__(self, one, two) -> None:
        super().__init__(f"{one} {two}")


class Replica:
    def __init__(self, name="one"):
        self.name = name
        self.server = CallServer(
            self, {"double", "refuse", "wait", "who", "pause", "puzzle", "fill"}, "127.0.0.1"
        )
        self.asked = []

    async def double(self, value):
        await asyncio.sleep(0.01 / (1 + value % 3))
        return 2 * value

    async def refuse(self, why):
        raise QueryError(why)

    async def wait(self):
        await asyncio.sleep(60)

    async def who(self):
        return self.name

    async def pause(self, seconds):
        await asyncio.sleep(seconds)
        return self.name

    async def fill(self, size):
        return bytes(size)

    async def puzzle(self):
        raise PuzzleError(1, 2)

    async def secret(self):
        self.asked.append("secret")


def test_answers_come_to_their_callers_whatever_their_order():
    async def main():
        channel = await Channel.to(await Replica().server.address())
        found = await asyncio.gather(*[channel.call("double", value) for value in range(50)])
        assert found == [2 * value for value in range(50)]
        assert not channel.waiting
        channel.close()

    asyncio.run(main())


def test_an_error_of_the_method_is_raised_by_the_call():
    async def main():
        replica = Replica()
        channel = await Channel.to(await replica.server.address())
        with pytest.raises(QueryError, match="no such column"):
            await channel.call("refuse", "no such column")
        with pytest.raises(AttributeError):
            await channel.call("secret")
        assert not replica.asked
        channel.close()

    asyncio.run(main())


def test_an_error_that_cannot_travel_harms_no_other_call():
    async def main():
        channel = await Channel.to(await Replica().server.address())
        other = asyncio.ensure_future(channel.call("pause", 0.05))
        with pytest.raises(RuntimeError, match="PuzzleError"):
            await channel.call("puzzle")
        assert await other == "one"
        channel.close()

    asyncio.run(main())


class Canary:
    """Cries when it is unpickled."""

    cried = False

    def __reduce__(self):
        return Canary._cry, ()

    @staticmethod
    def _cry():
        Canary.cried = True


def test_nothing_of_a_stranger_is_unpickled():
    async def main():
        address = await Replica().server.address()
        reader, writer = await asyncio.open_connection(address.host, address.port)
        data = pickle.dumps(Canary())
        writer.write(bytes(SECRET_BYTES) + HEADER.pack(len(data), 1) + data)
        assert await reader.read() == b""
        writer.close()
        assert not Canary.cried
        assert address.secret.hex() not in repr(address)

    asyncio.run(main())


def test_a_caller_that_reads_nothing_is_left(monkeypatch):
    monkeypatch.setattr(wire, "MAX_UNSENT_BYTES", 1 << 20)

    async def main():
        address = await Replica().server.address()
        _reader, writer = await asyncio.open_connection(address.host, address.port, limit=1)
        writer.write(address.secret)
        asking = pickle.dumps(("fill", (1 << 20,)))
        while True:
            writer.write(HEADER.pack(len(asking), 1) + asking)
            await writer.drain()
            await asyncio.sleep(0.001)

    with pytest.raises(ConnectionError):
        asyncio.run(asyncio.wait_for(main(), 20))


def test_calls_on_their_way_fail_when_the_replica_goes():
    async def main():
        replica = Replica()
        channel = await Channel.to(await replica.server.address())
        calls = [asyncio.ensure_future(channel.call("wait")) for _ in range(3)]
        await asyncio.sleep(0.01)
        channel._writer.transport.abort()
        for call in calls:
            with pytest.raises(ConnectionError):
                await call
        with pytest.raises(ConnectionError):
            await channel.call("double", 1)

    asyncio.run(main())


def test_the_replica_with_the_least_to_do_is_called_and_serve_where_none_is():
    async def main():
        replicas = [Replica("one"), Replica("two")]
        there = []

        async def addresses():
            return [await replica.server.address() for replica in there]

        async def through_serve(method, *arguments):
            return "serve"

        direct = Direct(addresses, through_serve)
        assert await direct("who") == "serve"
        there += replicas
        direct._lost.set()
        await asyncio.sleep(0.6)
        waiting = asyncio.ensure_future(direct("wait"))
        await asyncio.sleep(0.01)
        busy = {channel for channel in direct._channels.values() if channel.waiting}
        found = {await direct("who") for _ in range(5)}
        assert len(busy) == len(found) == 1
        waiting.cancel()
        for channel in direct._channels.values():
            channel.close()
        await asyncio.sleep(0.01)
        assert await direct("who") == "serve"

    asyncio.run(main())


async def met(replicas, serves=None, **options):
    """A `Direct` that is connected to all of them."""

    async def addresses():
        return [await replica.server.address() for replica in replicas]

    async def through_serve(method, *arguments):
        return serves or await asyncio.sleep(9)

    direct = Direct(addresses, through_serve, **options)
    await direct._look()
    return direct


def test_a_replica_that_keeps_callers_waiting_is_called_last_until_it_answers():
    async def main():
        direct = await met([Replica("one"), Replica("two")], late_s=0.02)
        given_up = asyncio.ensure_future(direct("pause", 0.3))
        await asyncio.sleep(0.05)
        given_up.cancel()
        (slow,) = [channel for channel in direct._channels.values() if channel.unanswered]
        others = [asyncio.ensure_future(direct("pause", 0.01)) for _ in range(3)]
        found = {await other for other in others}
        assert len(found) == 1
        assert {await direct("who") for _ in range(5)} == found
        assert not slow.waiting
        await asyncio.sleep(0.4)
        assert not slow.unanswered

    asyncio.run(main())


def test_idle_replicas_are_called_in_turn():
    async def main():
        direct = await met([Replica("one"), Replica("two")])
        found = [await direct("who") for _ in range(6)]
        assert found in (["one", "two"] * 3, ["two", "one"] * 3)

    asyncio.run(main())


def test_serve_is_asked_when_all_known_replicas_hang(monkeypatch):
    monkeypatch.setattr("clipray.serve.calls.LATE_S", 0.02)

    async def main():
        direct = await met([Replica()], serves="another")
        hanging = asyncio.ensure_future(direct("wait"))
        await asyncio.sleep(0.05)
        assert await direct("who") == "another"
        hanging.cancel()

    asyncio.run(main())


def test_a_replica_that_leaves_answers_what_it_was_asked_and_is_asked_no_more():
    async def main():
        leaving, staying = Replica("one"), Replica("two")
        direct = await met([leaving, staying])
        calls = [asyncio.ensure_future(direct("pause", 0.1)) for _ in range(4)]
        await asyncio.sleep(0.01)
        left = asyncio.ensure_future(leaving.server.leave())
        await asyncio.sleep(0.01)
        assert {await direct("who") for _ in range(5)} == {"two"}
        assert not left.done()
        assert sorted(await asyncio.gather(*calls)) == ["one", "one", "two", "two"]
        await asyncio.wait_for(left, 1)
        assert leaving.server.leave() is None

    asyncio.run(main())


def test_a_replica_that_was_never_asked_for_leaves_at_once():
    async def main():
        assert Replica().server.leave() is None

    asyncio.run(main())


def test_serve_is_not_waited_for_long_when_all_replicas_are_lost():
    async def main():
        direct = await met([Replica()], empty_s=0.05)
        for channel in direct._channels.values():
            channel.close()
        began = time.perf_counter()
        with pytest.raises(TimeoutError):
            await direct("who")
        assert time.perf_counter() - began < 5  # of 9

    asyncio.run(main())


def test_where_nobody_listens_is_said_at_once():
    with pytest.raises(OSError, match=r"refused|Connect"):
        asyncio.run(Channel.to(Address("127.0.0.1", 1, b"")))
