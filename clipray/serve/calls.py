"""How the ingress calls the replicas of another deployment: straight, or through Ray Serve."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from clipray.serve.catalog import ServedFolder
from clipray.serve.holding import Told
from clipray.serve.line import Send
from clipray.serve.switch import Opener
from clipray.serve.wire import Address, Channel

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between looks for replicas that came or went
SOON_S = 0.5  # after one was lost
ANSWER_S = 5.0

Handle = DeploymentHandle[Any]


class Direct:
    """Calls the replica that has the least to do, straight; through Serve where none is known.

    Args:
        addresses: asks all replicas where they listen.
        through_serve: how else a replica is called.
    """

    def __init__(
        self, addresses: Callable[[], Awaitable[Sequence[Address]]], through_serve: Send
    ) -> None:
        self._addresses = addresses
        self._through_serve = through_serve
        self._channels: dict[Address, Channel] = {}
        self._lost = asyncio.Event()
        self._watching = asyncio.ensure_future(self._watch())

    async def __call__(self, method: str, *arguments: Any) -> Any:
        """What a replica answers.

        Raises:
            ConnectionError: it has gone meanwhile.
            Exception: what its method raised.
        """
        standing = [channel for channel in self._channels.values() if channel.open]
        if len(standing) < len(self._channels):
            self._lost.set()
        if not standing:
            return await self._through_serve(method, *arguments)
        return await min(standing, key=lambda channel: len(channel.waiting)).call(
            method, *arguments
        )

    async def _watch(self) -> None:
        """Know the replicas that there are, for ever."""
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  calls go through Serve until then
                log.debug("no addresses: %r", error)
            known = bool(self._channels)
            try:
                async with asyncio.timeout(LOOK_S if known else SOON_S):
                    await self._lost.wait()
                await asyncio.sleep(SOON_S)  # Serve has to notice as well
            except TimeoutError:
                pass
            self._lost.clear()

    async def _look(self) -> None:
        async with asyncio.timeout(ANSWER_S):
            addresses = set(await self._addresses())
        for address in set(self._channels) - addresses:
            self._channels.pop(address).close()
        for address in addresses:
            channel = self._channels.get(address)
            if channel is None or not channel.open:
                self._channels.pop(address, None)
                self._channels[address] = await Channel.to(address)


def sender(handle: Handle) -> Send:
    """Calls of one replica, which Ray chooses, by value."""
    by_value = handle.options(_by_reference=False)
    methods: dict[str, Callable[..., Awaitable[Any]]] = {}

    async def send(method: str, *arguments: Any) -> Any:
        if method not in methods:  # a handle makes a copy of itself for every method asked for
            methods[method] = getattr(by_value, method).remote
        return await methods[method](*arguments)

    return send


def direct(handle: Handle) -> Direct:
    """Calls of the replicas of a deployment that has a method `address`."""

    async def addresses() -> Sequence[Address]:
        told = await handle.broadcast("address").results_async(return_exceptions=True)
        return [address for address in told if isinstance(address, Address)]

    return Direct(addresses, sender(handle))


def opener(handle: Handle) -> Opener:
    """Has all replicas open a version."""

    async def opened(folder: ServedFolder) -> Sequence[Told]:
        told: list[Told] = await handle.broadcast("open", folder).results_async()
        return told

    return opened
