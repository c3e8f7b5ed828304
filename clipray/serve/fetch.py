"""Getting an image from an address that a user gave, and from nowhere but the internet.

A name is resolved once, every address it has is checked, and the connection goes to what was
checked; redirects are followed by hand, each as a new address. What is refused is said without
what we found out about it, so that nobody can map a network with our replies.
"""

import asyncio
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from ipaddress import ip_address

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from pydantic import Field
from yarl import URL

from clipray import __version__
from clipray.config import Config
from clipray.errors import QueryError
from clipray.serve.addresses import is_public, parse

MAX_REDIRECTS = 3
MAX_SHOWN = 100
CHUNK = 64 << 10
RESOLVERS = 8

_HEADERS = {
    "User-Agent": f"clipray/{__version__}",
    "Accept": "image/*",
    "Accept-Encoding": "identity",
}
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NAME = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # as the last part of a host: an address, oddly spelt


class FetchOptions(Config):
    """Whether and how images are fetched by their address."""

    image_urls: bool = Field(False, description="fetch images that queries name by address")
    image_url_ports: tuple[int, ...] = Field(
        (80, 443), min_length=1, description="ports that images may be fetched from"
    )
    image_url_bytes: int = Field(20 << 20, ge=1, description="bytes of a fetched image, at most")
    image_url_timeout_s: float = Field(5.0, gt=0, description="seconds for one image, all in all")


async def fetch_image(url: str, options: FetchOptions) -> bytes:
    """The bytes at a public http or https address; whether they are an image is not looked at.

    The caller bounds how many are fetched at once: each may hold `image_url_bytes`.

    Raises:
        QueryError: images are not fetched here, the address is none that we go to, or nothing
            usable came back in time.
    """
    if not options.image_urls:
        raise QueryError(
            "image_url: this service fetches no images; send the image itself, or start the "
            "service with image_urls=true"
        )
    try:
        async with asyncio.timeout(options.image_url_timeout_s):
            return await _fetch(url, options)
    except TimeoutError:
        raise _refused(url, f"took longer than {options.image_url_timeout_s} s") from None
    except (aiohttp.ClientError, OSError, ValueError) as error:
        raise _refused(url, f"cannot be fetched ({type(error).__name__})") from None


async def _fetch(url: str, options: FetchOptions) -> bytes:
    place = _checked(url, url, options)
    connector = aiohttp.TCPConnector(resolver=_PublicResolver(url), use_dns_cache=False)
    async with aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers=_HEADERS,
        auto_decompress=False,
        trust_env=False,
    ) as session:
        for _ in range(MAX_REDIRECTS + 1):
            async with session.get(place, allow_redirects=False) as response:
                if response.status not in _REDIRECTS:
                    return await _read(response, url, options)
                target = place.join(URL(response.headers.get("Location", "")))
            place = _checked(str(target), url, options)
    raise _refused(url, f"redirects more than {MAX_REDIRECTS} times")


def _checked(target: str, url: str, options: FetchOptions) -> URL:
    """`target` as an address that we may go to; a name in it is still to be resolved."""
    try:
        place = URL(target)
        host, port = (place.raw_host or "").lower(), place.port
    except ValueError:
        raise _refused(url, "is no address") from None
    if place.scheme not in ("http", "https"):
        raise _refused(url, "is neither http nor https")
    if place.raw_user is not None or place.raw_password is not None:
        raise _refused(url, "holds a user name or a password")
    if port not in options.image_url_ports:
        allowed = ", ".join(str(port) for port in options.image_url_ports)
        raise _refused(url, f"is on another port than {allowed}")
    _check_host(host, url)
    return place.with_fragment(None)


def _check_host(host: str, url: str) -> None:
    address = parse(host)
    if address is not None:
        if not is_public(address):
            raise _not_public(url)
        return
    last = host.rstrip(".").rpartition(".")[2]
    if len(host) > 253 or not _NAME.fullmatch(host) or _NUMBER.fullmatch(last):
        raise _refused(url, "has a host that is neither a name nor an address as a.b.c.d or [a::b]")


async def _read(response: aiohttp.ClientResponse, url: str, options: FetchOptions) -> bytes:
    if response.status != 200:
        raise _refused(url, f"answered with status {response.status}")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _refused(url, "answered with a compressed body, which was not asked for")
    most = options.image_url_bytes
    if (response.content_length or 0) > most:
        raise _refused(url, f"is larger than {most} bytes")
    data = bytearray()
    async for chunk in response.content.iter_chunked(CHUNK):
        data += chunk
        if len(data) > most:
            raise _refused(url, f"is larger than {most} bytes")
    return bytes(data)


class _PublicResolver(AbstractResolver):
    """Gives the connector the addresses of a name, or none at all if one of them is not public."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        loop = asyncio.get_running_loop()
        try:
            found = await loop.run_in_executor(
                _resolvers(), socket.getaddrinfo, host, port, family, socket.SOCK_STREAM
            )
        except (OSError, UnicodeError):
            raise _not_public(self._url) from None  # the same as if it were an inner name
        if not found or not all(is_public(ip_address(place[0])) for *_, place in found):
            raise _not_public(self._url)
        return [_result(host, port, kind, str(place[0])) for kind, *_, place in found]

    async def close(self) -> None:
        pass


def _result(host: str, port: int, family: int, address: str) -> ResolveResult:
    return ResolveResult(
        hostname=host,
        host=address,
        port=port,
        family=family,
        proto=0,
        flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
    )


@cache
def _resolvers() -> ThreadPoolExecutor:
    """Threads of their own: names that never resolve must not hold up other work."""
    return ThreadPoolExecutor(RESOLVERS, "clipray-resolve")


def _not_public(url: str) -> QueryError:
    return _refused(url, "leads to no address on the public internet")


def _refused(url: str, why: str) -> QueryError:
    shown = url if len(url) <= MAX_SHOWN else url[:MAX_SHOWN] + "…"
    return QueryError(f"image_url {shown} {why}")
