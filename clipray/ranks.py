"""How the ranks of a run find each other: Ray's process group, on the addresses of their nodes.

What a rank does is not known here.
"""

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig

from clipray import nodes

INTERFACE = "GLOO_SOCKET_IFNAME"
SIOCGIFADDR = 0x8915  # of Linux


class RankConfig(TorchConfig):
    """Ray's own, where gloo listens on the network that the nodes share.

    By itself gloo takes the address of the hostname, which on many machines is 127.0.0.1: ranks on
    other nodes then wait for this one until the timeout.
    """

    @property
    def backend_cls(self) -> type[Any]:
        """What sets up the group."""
        return RankBackend


class RankBackend(TorchConfig().backend_cls):  # type: ignore[misc]
    """Sets up the group after every rank on another node has chosen its interface."""

    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        """Called by Ray, where it directs the run."""
        if len(set(worker_group.execute(nodes.own_address))) > 1:
            worker_group.execute(choose_interface)
        super().on_start(worker_group, backend_config)


def choose_interface() -> None:
    """Have gloo use the interface of this node's own address, unless the user has chosen one."""
    name = interface_of(nodes.own_address())
    if name is not None:
        os.environ.setdefault(INTERFACE, name)


def interface_of(address: str) -> str | None:
    """Name of the network interface with an IPv4 address; None where none has it first."""
    names = (name for _, name in socket.if_nameindex())
    return next((name for name in names if _address(name) == address), None)


def _address(interface: str) -> str | None:
    """First IPv4 address of an interface."""
    asked = struct.pack("256s", interface.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            answer = fcntl.ioctl(probe, SIOCGIFADDR, asked)
        except OSError:
            return None
    return socket.inet_ntoa(answer[20:24])
