"""An HTTP server inside an ingress replica.

Ray's own proxy costs 8 ms of CPU a request, and the HAProxy that it can start instead listens on
all addresses with its statistics. So the ingress listens itself: several replicas on one machine
share the port, and the kernel deals the connections out.
"""

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from clipray.errors import ConfigError
from clipray.serve.args import Listen

KEEP_ALIVE_S = 60
BACKLOG = 2048
CLOSE_S = 10.0


class Front:
    """Listens from now on until it is closed.

    Args:
        app: the ASGI application.
        listen: where.

    Raises:
        ConfigError: the address cannot be listened on.
    """

    def __init__(self, app: Any, listen: Listen) -> None:
        self._socket = bound(listen, shared=True)
        self._socket.listen(BACKLOG)  # who comes before the server runs waits for it
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(CLOSE_S),
            backlog=BACKLOG,
            server_header=False,
            proxy_headers=False,
        )
        self._server = _Server(config)
        self._serving = asyncio.ensure_future(self._server.serve(sockets=[self._socket]))

    async def close(self) -> None:
        """Take no more connections, and finish the requests in work."""
        self._server.should_exit = True
        await asyncio.wait([self._serving], timeout=CLOSE_S)
        self._socket.close()


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to Ray, whose process this is."""
        yield


def bound(listen: Listen, *, shared: bool) -> socket.socket:
    """A socket that is bound to an address.

    Args:
        listen: the address.
        shared: with other processes that ask for the same.

    Raises:
        ConfigError: it is taken, or none of this machine.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if shared:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        found.bind((listen.host, listen.port))
    except OSError as error:
        found.close()
        raise ConfigError(
            f"port {listen.port} on {listen.host}: cannot listen there ({error})"
        ) from None
    return found
