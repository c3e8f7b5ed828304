"""The ingress listens itself: several on one port, and no request is lost at the end."""

import asyncio
import socket

import aiohttp
import pytest

from clipray.errors import ConfigError
from clipray.serve.args import Listen, Scaling
from clipray.serve.front import Front, bound
from clipray.serve.local import ServeConfig, start


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
        for front in fronts:
            await front.close()
        return found

    assert asyncio.run(main()) == {b"one", b"two"}


def test_requests_in_work_are_finished_when_it_is_closed():
    async def main():
        listen = Listen(port=free_port())
        front = Front(Slow(b"done"), listen)
        request = asyncio.ensure_future(asked(listen))
        await asyncio.sleep(0.05)
        await front.close()
        assert await request == b"done"
        with pytest.raises(aiohttp.ClientConnectorError):
            await asked(listen)

    asyncio.run(main())


def test_a_port_that_somebody_else_has_is_refused_by_name():
    listen = Listen(port=free_port())
    with bound(listen, shared=False) as holder:
        holder.listen()
        with pytest.raises(ConfigError, match=f"port {listen.port} on 127.0.0.1"):
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
    assert Scaling(replicas=2, per_node=1).options() == {
        "num_replicas": 2,
        "max_replicas_per_node": 1,
    }
    scaled = Scaling(replicas=1, max_replicas=4, target=3).options()
    assert scaled["autoscaling_config"]["max_replicas"] == 4
    assert "num_replicas" not in scaled
    with pytest.raises(ValueError, match="max_replicas 1 is less than 2"):
        Scaling(replicas=2, max_replicas=1)
