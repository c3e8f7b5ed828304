"""Which web sites may use the service through the browser of somebody who visits them.

Three guards: names that another site has pointed at this machine (DNS rebinding), requests that
another site makes a browser send (cross-site forgery), and CORS for the sites that are let in.
Programs that are no browsers send none of these headers and are not touched.
"""

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from clipray.config import Config
from clipray.errors import AccessError
from clipray.serve.addresses import host_of, is_loopback
from clipray.serve.refusal import Headers, Refusal

HeaderMap = Mapping[bytes, bytes]

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})  # they change nothing and cost little
PREFLIGHT_S = 600

_ORIGIN = re.compile(r"\*|https?://[^/?#@\s]+")
_HOST = re.compile(r"[\w.:-]+")


def _as_origin(value: str) -> str:
    if not _ORIGIN.fullmatch(value):
        raise ValueError("expected scheme://host[:port] with nothing after it, or *")
    return value.lower()


def _as_host(value: str) -> str:
    if not _HOST.fullmatch(value):
        raise ValueError("expected a host name, without scheme and path")
    return host_of(value.encode())


class OriginOptions(Config):
    """Which sites and names are let in."""

    cors_origins: tuple[Annotated[str, AfterValidator(_as_origin)], ...] = Field(
        (),
        description="web sites whose pages may use the service, such as https://a.example; * all",
    )
    allowed_hosts: tuple[Annotated[str, AfterValidator(_as_host)], ...] = Field(
        (), description="names that a service on loopback is also reached by, such as a proxy's"
    )


class Origins:
    """Decides by the headers that browsers set and pages cannot.

    Args:
        options: what is let in.
        local: whether the service listens on loopback alone; only then its names are known.
    """

    def __init__(self, options: OriginOptions, *, local: bool) -> None:
        self._origins = frozenset(options.cors_origins)
        self._hosts = frozenset(options.allowed_hosts)
        self._local = local

    @property
    def any(self) -> bool:
        """Whether any other site is let in."""
        return bool(self._origins)

    def refusal(self, method: str, headers: HeaderMap) -> Refusal | None:
        """Why a request may not come from where it does; None when it may."""
        host = headers.get(b"host", b"")
        if self._local and host and not self._is_ours(host):
            return _strange_host(host)
        if method not in SAFE_METHODS and self._is_foreign(headers, host):
            return _strange_site(headers)
        return None

    def cors(self, headers: HeaderMap) -> Headers:
        """What tells a browser whether the page that asked may see the reply."""
        if not self._origins:
            return ()
        if "*" in self._origins:
            return ((b"access-control-allow-origin", b"*"),)
        origin = headers.get(b"origin")
        if origin is None or not self._allows(origin):
            return ((b"vary", b"Origin"),)
        return (
            (b"access-control-allow-origin", origin),
            (b"access-control-expose-headers", b"Retry-After"),
            (b"vary", b"Origin"),
        )

    def preflight(self, headers: HeaderMap) -> Headers:
        """What a browser wants to know before it sends JSON or a key to another site."""
        if not self._allows(headers.get(b"origin", b"")):
            return ()
        return (
            (b"access-control-allow-methods", b"GET, POST"),
            (b"access-control-allow-headers", b"authorization, content-type"),
            (b"access-control-max-age", b"%d" % PREFLIGHT_S),
        )

    def _is_ours(self, header: bytes) -> bool:
        host = host_of(header)
        return is_loopback(host) or host in self._hosts

    def _allows(self, origin: bytes) -> bool:
        return "*" in self._origins or origin.decode("latin-1").lower() in self._origins

    def _is_foreign(self, headers: HeaderMap, host: bytes) -> bool:
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        if site in (b"same-origin", b"none"):
            return False
        if origin is None:
            return site is not None
        same = origin.partition(b"://")[2].lower() == host.lower()  # a proxy may have taken off TLS
        return not same and not self._allows(origin)


def _strange_host(header: bytes) -> Refusal:
    told = header.decode("latin-1")[:100]
    return Refusal(
        403,
        AccessError.__name__,
        f"this service listens on loopback and is not known as '{told}'; ask for localhost, or "
        "name it in allowed_hosts when starting the service",
    )


def _strange_site(headers: HeaderMap) -> Refusal:
    origin = headers.get(b"origin", b"another site").decode("latin-1")[:100]
    return Refusal(
        403,
        AccessError.__name__,
        f"a page of {origin} may not use this service; name the site in cors_origins when "
        "starting the service",
    )
