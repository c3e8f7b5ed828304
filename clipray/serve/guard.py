"""What stands in front of the routes: keys, limits, origins, headers, the access log.

Plain ASGI, some tens of microseconds a request. It knows paths only by what they need: nothing,
a read key or an admin key. The time that a route may take is not bounded here.
"""

import logging
from collections.abc import Mapping
from secrets import token_hex

from pydantic import Field
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from clipray.serve.exchange import GONE, Exchange
from clipray.serve.keys import KeyOptions, Keys, Need
from clipray.serve.limits import SMALL_BODY, Body, LimitOptions, Limits, announced, replayed
from clipray.serve.meter import OTHER, Meter
from clipray.serve.origins import SAFE_METHODS, OriginOptions, Origins
from clipray.serve.refusal import Headers, Refusal

log = logging.getLogger(__name__)

HEADERS: Headers = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        b"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
PUBLIC = frozenset({"/", "/healthz", "/readyz"})
PAGE_FILES = "/web/"
METRICS = "/metrics"  # asked for by who watches an overload


class GuardOptions(KeyOptions, OriginOptions, LimitOptions):
    """How the service is protected."""

    access_log: bool = Field(
        False, description="one JSON line a request, to the logger clipray.access"
    )


def guarded(
    app: ASGIApp, options: GuardOptions, keys: Keys, meter: Meter, *, local: bool
) -> ASGIApp:
    """`app` behind everything that is checked before and after its routes.

    Args:
        app: the routes.
        options: limits and who is let in; keys are taken from `keys` alone.
        keys: read and admin keys.
        meter: counts requests by the route that they matched, refused ones included.
        local: whether the service listens on loopback alone.
    """
    return _Guard(app, options, keys, meter, local=local)


class _Guard:
    def __init__(
        self, app: ASGIApp, options: GuardOptions, keys: Keys, meter: Meter, *, local: bool
    ) -> None:
        self._app, self._keys, self._meter, self._local = app, keys, meter, local
        self._access_log = options.access_log
        self._limits = Limits(options)
        self._origins = Origins(options, local=local)
        policy = b"cross-origin" if self._origins.any else b"same-origin"
        self._headers = (*HEADERS, (b"cross-origin-resource-policy", policy))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        exchange = Exchange(scope, send, self._headers, self._origins.cors(headers))
        try:
            if refusal := self._refusal(scope, headers):
                await self._refuse(refusal, headers, receive, exchange)
            elif scope["method"] == "OPTIONS":
                await exchange.reply(204, self._origins.preflight(headers))
            else:
                await self._take(scope, headers, receive, exchange)
        except OSError:
            if not exchange.broken:
                raise
        finally:
            route = scope.get("route")  # the template, where the routes have seen it
            self._meter.request(getattr(route, "path", OTHER), exchange.status or GONE)
            if self._access_log:
                exchange.log()

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> Refusal | None:
        if refusal := self._origins.refusal(scope["method"], headers):
            return refusal
        if scope["method"] == "OPTIONS":
            return None
        path = route_path(scope)
        key = headers.get(b"authorization")
        return (
            self._keys.refusal(need_of(path), key, local=self._local)
            or (None if is_exempt(path) else self._limits.crowded())
            or self._limits.too_long(announced(headers) or 0)
        )

    async def _refuse(
        self,
        refusal: Refusal,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        exchange: Exchange,
    ) -> None:
        length = announced(headers)
        if length is None or length > SMALL_BODY or refusal.status == 408:
            most = 0 if refusal.status == 408 else self._limits.options.max_body_bytes
            await exchange.refuse_unread(refusal, receive, most)
        else:
            await exchange.refuse(refusal)

    async def _take(
        self,
        scope: Scope,
        headers: Mapping[bytes, bytes],
        receive: Receive,
        exchange: Exchange,
    ) -> None:
        if scope["method"] in SAFE_METHODS and announced(headers) == 0:
            await self._enter(scope, replayed(b"", receive), exchange)
            return
        with Body(self._limits) as body:
            read = await body.read(receive)
            if body.gone:
                return
            if not isinstance(read, Refusal):
                await self._enter(scope, replayed(read, receive), exchange)
            elif body.complete:
                await exchange.refuse(read)
            else:
                await self._refuse(read, headers, receive, exchange)

    async def _enter(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        if is_exempt(route_path(scope)):
            await self._run(scope, receive, exchange)
            return
        if refusal := self._limits.crowded():  # others came in while the body was read
            await exchange.refuse(refusal)
            return
        self._limits.at_work += 1
        try:
            await self._run(scope, receive, exchange)
        finally:
            self._limits.at_work -= 1

    async def _run(self, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        try:
            await self._app(scope, receive, exchange.send)
            await exchange.finish()
        except ClientDisconnect:
            return
        except Exception:
            if exchange.broken:
                return
            if exchange.started:
                raise  # the server logs it and cuts the reply off
            reference = token_hex(4)
            asked = f"{scope['method']} {scope['path'][:200]!r}"
            log.exception("%s failed, reference %s", asked, reference)
            await exchange.refuse(_failed(reference))


def route_path(scope: Scope) -> str:
    """The path as the routes see it, without the prefix that the app is mounted at."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    inside = root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/")
    return path[len(root) :] if inside else path


def need_of(path: str) -> Need:
    """What a request for `path` needs; all that is not named here needs a read key."""
    if path in PUBLIC or path.startswith(PAGE_FILES):
        return "nothing"
    return "admin" if path == "/admin" or path.startswith("/admin/") else "read"


def is_exempt(path: str) -> bool:
    """Whether `path` is answered however much there is to do."""
    return path in PUBLIC or path == METRICS or path.startswith(PAGE_FILES)


def _failed(reference: str) -> Refusal:
    return Refusal(
        500,
        "InternalError",
        f"the service failed at this request; see its log, reference {reference}",
    )
