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
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from clipray.errors import ConfigError
from clipray.serve.args import Listen

KEEP_ALIVE_S = 60
HEADERS_S = 20.0  # for the headers of a request to arrive; the guard bounds the body
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
            http=_Connection,
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


class _Connection(HttpToolsProtocol):
    """Closed when headers do not arrive: uvicorn itself would wait for them without end."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        """Some of a request has come."""
        super().data_received(data)
        if self.cycle and not self.cycle.response_complete:
            self._relax()
        elif self._late is None:
            self._hurry()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was closed on."""
        self._relax()
        super().connection_lost(exc)

    def _hurry(self) -> None:
        self._late = self.loop.call_later(HEADERS_S, self.transport.close)

    def _relax(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None


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
            f"port {listen.port} on {listen.host}: cannot listen there ({error}); "
            "choose another port, or end what uses it"
        ) from None
    return found
