"""The ingress listens itself: several on one port, and no request is lost at the end."""

import asyncio
import contextlib
import socket
import subprocess
import sys

import aiohttp
import pytest

from clipray.errors import ConfigError
from clipray.serve import front
from clipray.serve.args import Listen, Scaling
from clipray.serve.front import Front, bound
from clipray.serve.local import ServeConfig, start

WHOLE = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Slow:
    """Says its name after a moment."""

    def __init__(self, name) -> None:
        self.name = name

    async def __call__(self, scope, receive, send):
        await asyncio.sleep(0.1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": self.name})


async def asked(listen):
    async with aiohttp.ClientSession() as session, session.get(listen.url) as response:
        return await response.read()


def test_replicas_on_one_machine_share_the_port():
    async def main():
        listen = Listen(port=free_port())
        fronts = [Front(Slow(name), listen) for name in (b"one", b"two")]
        found = {await asked(listen) for _ in range(2)} | set(
            await asyncio.gather(*[asked(listen) for _ in range(40)])
        )
        for one in fronts:
            await one.close()
        return found

    assert asyncio.run(main()) == {b"one", b"two"}


def test_requests_in_work_are_finished_when_it_is_closed():
    async def main():
        listen = Listen(port=free_port())
        service = Front(Slow(b"done"), listen)
        request = asyncio.ensure_future(asked(listen))
        await asyncio.sleep(0.05)
        await service.close()
        assert await request == b"done"
        with pytest.raises(aiohttp.ClientConnectorError):
            await asked(listen)

    asyncio.run(main())


def test_headers_that_do_not_arrive_end_the_connection(monkeypatch):
    """Neither do they after a request that was answered; a request that takes its time stays."""
    monkeypatch.setattr(front, "HEADERS_S", 0.3)

    async def main():
        listen = Listen(port=free_port())
        service = Front(Slow(b"done"), listen)
        for said in (b"", b"GET / HTTP/1.1\r\nHost: a\r\n", WHOLE):
            reader, writer = await asyncio.open_connection(listen.host, listen.port)
            writer.write(said)
            if said == WHOLE:
                assert b"done" in await reader.readuntil(b"\r\n0\r\n\r\n")
                writer.write(b"GET /")
            assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
        await service.close()

    asyncio.run(main())


POST = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "more"),
    [
        (b"GET /", b"a" * 1000),
        (b"GET / HTTP/1.1\r\nx: ", b"a" * 1000),
        (b"GET / HTTP/1.1\r\n", b"x: %s\r\n" % (b"a" * 1000)),
        (POST + b"1;", b"a" * 1000),
        (POST + b"1\r\na\r\n0\r\n", b"x: %s\r\n" % (b"a" * 1000)),
    ],
    ids=["address", "header", "headers", "extension", "trailers"],
)
def test_headers_that_do_not_end_end_the_connection(said, more):
    async def main():
        listen = Listen(port=free_port())
        service = Front(Slow(b"done"), listen)
        reader, writer = await asyncio.open_connection(listen.host, listen.port)
        writer.write(said)
        with contextlib.suppress(ConnectionError):
            for _ in range(20):
                writer.write(more * 50)
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.sleep(0.01)
            assert b"done" not in await asyncio.wait_for(reader.read(), 5)
        await service.close()

    asyncio.run(main())


def test_long_headers_and_a_body_after_them_are_read():
    async def main():
        listen = Listen(port=free_port())
        service = Front(Slow(b"done"), listen)
        async with aiohttp.ClientSession(headers={"x": "a" * 60_000}) as session:
            for _ in range(3):
                async with session.post(listen.url, data=bytes(1 << 20)) as response:
                    assert await response.read() == b"done"
        await service.close()

    asyncio.run(main())


SIZE = 20 << 20


async def large(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": bytes(SIZE)})


def test_a_reply_that_nobody_reads_is_not_kept(monkeypatch):
    monkeypatch.setattr(front, "UNREAD_S", 0.3)

    async def main():
        listen = Listen(port=free_port())
        service = Front(large, listen)
        with socket.create_connection((listen.host, listen.port)) as silent:
            silent.sendall(WHOLE)
            await asyncio.sleep(0.2)
            assert service._server.server_state.connections
            await asyncio.sleep(1)
            assert not service._server.server_state.connections
        await service.close()

    asyncio.run(main())


def test_a_reply_that_is_read_slowly_is_sent_whole(monkeypatch):
    monkeypatch.setattr(front, "UNREAD_S", 0.3)

    async def main():
        listen = Listen(port=free_port())
        service = Front(large, listen)
        reader, writer = await asyncio.open_connection(listen.host, listen.port, limit=1 << 20)
        writer.write(WHOLE.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))
        found = 0
        while piece := await reader.read(1 << 20):
            found += len(piece)
            await asyncio.sleep(0.05)
        assert found > SIZE
        writer.close()
        await service.close()

    asyncio.run(main())


def test_a_service_that_cannot_stop_is_left():
    waits = "from clipray.serve import local; local.leave_within(0.2); local.time.sleep(300)"
    done = subprocess.run(
        [sys.executable, "-c", waits], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr.strip()) == (
        0,
        "Ray did not stop within 0.2 s; leaving it",
    )


def test_a_port_that_somebody_else_has_is_refused_by_name():
    listen = Listen(port=free_port())
    with bound(listen, shared=False) as holder:
        holder.listen()
        with pytest.raises(ConfigError, match=f"port {listen.port} on 127.0.0.1: .+ another"):
            bound(listen, shared=False)


def test_other_machines_are_let_in_only_with_a_key_or_on_purpose(monkeypatch):
    monkeypatch.delenv("CLIPRAY_READ_KEYS", raising=False)
    config = ServeConfig(index=("nowhere",), host="0.0.0.0", port=free_port())
    with pytest.raises(ConfigError, match="CLIPRAY_READ_KEYS"):
        start(config)
    for key, public in (("", True), ("a-key-of-sixteen-or-more", False)):
        monkeypatch.setenv("CLIPRAY_READ_KEYS", key)
        with pytest.raises(Exception, match=r"nowhere|Ray has not"):  # what comes next
            start(config.model_copy(update={"public": public}))


def test_scaling_is_what_serve_is_told():
    assert Scaling(replicas=2, per_node=1).options(5) == {"num_replicas": 2}
    scaled = Scaling(replicas=1, max_replicas=4, upscale_delay_s=3)
    (scaling,) = scaled.options(5).values()
    assert scaling == {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 5,
        "upscale_delay_s": 3,
        "downscale_delay_s": 600,
    }
    (scaling,) = scaled.model_copy(update={"target": 2}).options(5).values()
    assert scaling["target_ongoing_requests"] == 2
    with pytest.raises(ValueError, match="max_replicas 1 is less than 2"):
        Scaling(replicas=2, max_replicas=1)
