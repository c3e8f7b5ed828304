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
MAX_HEADER_BYTES = 64 << 10  # before the body of a request, behind it, or between parts of it
UNREAD_S = 60.0  # for a client to take any more of a reply
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
    """Closed on headers that do not arrive or do not end, and on replies that nobody reads.

    uvicorn itself would wait without end, and keep all that has come or is to go in memory.
    """

    _late: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has come."""
        super().connection_made(transport)
        self._hurry()

    def data_received(self, data: bytes) -> None:
        """Some of a request has come."""
        self._header_bytes += len(data)  # 0 again when the parser comes upon a body, or the end
        super().data_received(data)
        at_work = self.cycle and not self.cycle.response_complete
        if self._header_bytes > MAX_HEADER_BYTES:
            self._end_flood(at_work=bool(at_work))
        elif at_work:
            self._relax()
        elif self._late is None:
            self._hurry()

    def on_body(self, body: bytes) -> None:
        """Some of it is no header."""
        self._header_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request has come whole."""
        self._header_bytes = 0
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client takes a reply more slowly than it is given."""
        super().pause_writing()
        self._watch(None)

    def resume_writing(self) -> None:
        """It has taken nearly all."""
        self._unwatch()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has gone, or was closed on."""
        self._relax()
        self._unwatch()
        super().connection_lost(exc)

    def _hurry(self) -> None:
        self._late = self.loop.call_later(HEADERS_S, self.transport.close)

    def _relax(self) -> None:
        if self._late:
            self._late.cancel()
            self._late = None

    def _end_flood(self, *, at_work: bool) -> None:
        if at_work:  # a reply may be on its way, so nothing can be said
            self.transport.abort()
        else:
            self.send_400_response(f"Headers of more than {MAX_HEADER_BYTES} bytes.")

    def _watch(self, left: int | None) -> None:
        """Look again later; end it where as much is left to send as the last time."""
        found = self.transport.get_write_buffer_size()
        if found == left:
            self.transport.abort()
        else:
            self._unread = self.loop.call_later(UNREAD_S, self._watch, found)

    def _unwatch(self) -> None:
        if self._unread:
            self._unread.cancel()
            self._unread = None


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
