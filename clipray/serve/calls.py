"""Calls through handles of Ray Serve, as the lines and the switch need them."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from clipray.serve.catalog import ServedFolder
from clipray.serve.holding import Told
from clipray.serve.line import Send
from clipray.serve.switch import Opener

Handle = DeploymentHandle[Any]


def sender(handle: Handle) -> Send:
    """Calls of one replica, which Ray chooses; arguments and answers go straight, by value."""
    by_value = handle.options(_by_reference=False)
    methods: dict[str, Callable[..., Awaitable[Any]]] = {}

    async def send(method: str, *arguments: Any) -> Any:
        if method not in methods:  # a handle makes a copy of itself for every method asked for
            methods[method] = getattr(by_value, method).remote
        return await methods[method](*arguments)

    return send


def opener(handle: Handle) -> Opener:
    """Has all replicas open a version."""

    async def opened(folder: ServedFolder) -> Sequence[Told]:
        told: list[Told] = await handle.broadcast("open", folder).results_async()
        return told

    return opened
