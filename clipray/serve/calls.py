"""How the ingress calls the replicas of another deployment: straight, or through Ray Serve."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.exceptions import RayActorError
from ray.serve.handle import DeploymentHandle

from clipray.serve.catalog import ServedFolder
from clipray.serve.holding import Told
from clipray.serve.line import Line, LineOptions, Send
from clipray.serve.wire import Address, Channel

log = logging.getLogger(__name__)

LOOK_S = 10.0  # between looks for replicas that came or went
SOON_S = 0.5  # after one was lost
MENDING_S = 300.0  # that Serve may need for another one
ANSWER_S = 5.0
LATE_S = 0.5  # with an answer

Handle = DeploymentHandle[Any]
Addresses = Callable[[], Awaitable[Sequence[Address | BaseException]]]


class Direct:
    """Calls the replica that has the least to do, straight; through Serve where none is known.

    While a replica hangs, none says where it listens, for all are asked together.

    Args:
        addresses: asks all replicas where they listen; an exception for one that does not say.
        through_serve: how else a replica is called.
        empty_s: how long that may take when all replicas have been lost; by default as long as the
            caller waits.
        late_s: a replica that has left a call unanswered for longer is called last.
    """

    def __init__(
        self,
        addresses: Addresses,
        through_serve: Send,
        *,
        empty_s: float | None = None,
        late_s: float = LATE_S,
    ) -> None:
        self._addresses = addresses
        self._through_serve = through_serve
        self._empty_s, self._late_s = empty_s, late_s
        self._channels: dict[Address, Channel] = {}
        self._lost = asyncio.Event()
        self._most = 0  # replicas that were known at once
        self._hurry_until = 0.0
        self._watching = asyncio.ensure_future(self._watch())

    async def __call__(self, method: str, *arguments: Any) -> Any:
        """What a replica answers.

        Raises:
            ConnectionError: it has gone meanwhile.
            TimeoutError: there is none.
            Exception: what its method raised.
        """
        standing = [address for address, channel in self._channels.items() if channel.open]
        if len(standing) < len(self._channels):
            self._lost.set()
        if standing:
            address = min(standing, key=self._burden)
            best = self._channels[address] = self._channels.pop(address)  # in turn, where all idle
            if best.is_late(LATE_S):  # Serve may know others, when one that hangs hides them
                return await self._through_serve(method, *arguments)
            return await best.call(method, *arguments)
        async with asyncio.timeout(self._empty_s if self._most else None):
            return await self._through_serve(method, *arguments)

    def _burden(self, address: Address) -> tuple[bool, int]:
        """A replica that is stopped, or gone without a word, looks as if it had little to do."""
        channel = self._channels[address]
        return channel.is_late(self._late_s), len(channel.unanswered)

    async def _watch(self) -> None:
        """Know the replicas that there are, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001  calls go through Serve until then
                log.debug("no addresses: %r", error)
            if loop.time() > self._hurry_until:
                self._most = len(self._channels)
            hurry = not self._channels or len(self._channels) < self._most
            try:
                async with asyncio.timeout(SOON_S if hurry else LOOK_S):
                    await self._lost.wait()
                self._hurry_until = loop.time() + MENDING_S
                await asyncio.sleep(SOON_S)  # Serve has to notice as well
            except TimeoutError:
                pass
            self._lost.clear()

    async def _look(self) -> None:
        async with asyncio.timeout(ANSWER_S):
            told = await self._addresses()
        there = {one for one in told if isinstance(one, Address)}
        silent = len(there) < len(told)
        for address, channel in list(self._channels.items()):
            if not channel.open or (address not in there and not silent):
                self._channels.pop(address).leave()
        await asyncio.gather(*[self._connect(one) for one in there - self._channels.keys()])

    async def _connect(self, address: Address) -> None:
        try:
            self._channels[address] = await Channel.to(address)
            self._most = max(self._most, len(self._channels))
        except (OSError, TimeoutError) as error:
            log.debug("%s port %d: %r", address.host, address.port, error)


def sender(handle: Handle) -> Send:
    """Calls of one replica, which Ray chooses, by value."""
    by_value = handle.options(_by_reference=False)
    methods: dict[str, Callable[..., Awaitable[Any]]] = {}

    async def send(method: str, *arguments: Any) -> Any:
        if method not in methods:  # a handle makes a copy of itself for every method asked for
            methods[method] = getattr(by_value, method).remote
        return await methods[method](*arguments)

    return send


def direct(handle: Handle, options: LineOptions, *, vital: bool) -> Direct:
    """Calls of the replicas of a deployment that has a method `address`, as `line_to` has it."""

    async def addresses() -> Sequence[Address | BaseException]:
        told: list[Address | BaseException]
        told = await handle.broadcast("address").results_async(return_exceptions=True)
        return told

    # A hedge is to find the first replica late.
    late_s = LATE_S if options.hedge_s is None else min(LATE_S, options.hedge_s / 2)
    empty_s = None if vital else 2 * options.patience_s
    return Direct(addresses, sender(handle), empty_s=empty_s, late_s=late_s)


def line_to(
    handle: Handle, name: str, options: LineOptions, *, scaled: bool, vital: bool = False
) -> Line:
    """The line to a deployment.

    Args:
        handle: of the deployment.
        name: for messages.
        options: how long is waited.
        scaled: whether Serve scales it, which it does by the calls that go through it.
        vital: whether there is no answer without it; where all replicas are lost, which Serve
            needs many seconds to mend, another one is then waited for to the deadline.
    """
    return Line(name, sender(handle) if scaled else direct(handle, options, vital=vital), options)


class Opener:
    """Has all replicas of a group open versions, through Serve, which knows them all.

    A replica that dies meanwhile is not waited for: the next one opens the newest version.
    """

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    async def open(self, folder: ServedFolder) -> Sequence[Told]:
        """What each says of a version."""
        return await self._all("open", folder)

    async def retire(self, place: str, version: int) -> None:
        """Have them let go of earlier versions after a while."""
        await self._all("retire", place, version)

    async def _all(self, method: str, *arguments: Any) -> list[Any]:
        response = self._handle.broadcast(method, *arguments)
        told = await response.results_async(return_exceptions=True)
        answers = [one for one in told if not isinstance(one, BaseException)]
        for error in told:
            if isinstance(error, BaseException) and not (
                answers and isinstance(error, RayActorError)
            ):
                raise error
        return answers
