"""Images by address, over a made-up internet: names and connections end at one local server."""

import asyncio
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp import web

from clipray.errors import QueryError
from clipray.serve.addresses import is_loopback, is_public, parse
from clipray.serve.fetch import FetchOptions, fetch_image

PICTURE = b"picture" * 1000
ON = FetchOptions(image_urls=True, image_url_bytes=50_000, image_url_timeout_s=2)
PUBLIC, OTHER_PUBLIC, PRIVATE = "93.184.215.14", "2600::1", "10.0.0.7"


class Internet:
    """Names have the addresses given, and whatever is connected to is one local server.

    Args:
        names: each has the answers of its lookups; the last one is given again and again.
        monkeypatch: what the fetcher asks the system for is replaced with it.
    """

    def __init__(self, names: dict[str, list[list[str]]], monkeypatch: pytest.MonkeyPatch) -> None:
        self.names = names
        self.lookups: list[str] = []
        self.connected: list[str] = []
        self.requests: list[web.Request] = []
        self._port = 0
        self._connect = socket.socket.connect
        monkeypatch.setattr(socket, "getaddrinfo", self._lookup)
        connect = lambda sock, address: self._connect_here(sock, address)  # noqa: E731, PLW0108
        monkeypatch.setattr(socket.socket, "connect", connect)  # a method would not get the socket

    def _lookup(self, host: str, port: int, *_: Any, **__: Any) -> list[tuple[Any, ...]]:
        self.lookups.append(host)
        answers = self.names.get(host.rstrip("."), [])
        if not answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        found = answers.pop(0) if len(answers) > 1 else answers[0]
        return [_info(address, port) for address in found]

    def _connect_here(self, sock: socket.socket, address: tuple[Any, ...]) -> None:
        self.connected.append(address[0])
        self._connect(sock, ("127.0.0.1", self._port))

    def fetch(self, url: str, options: FetchOptions = ON) -> bytes:
        async def fetched() -> bytes:
            runner = web.ServerRunner(web.Server(self._serve), shutdown_timeout=0)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            self._port = runner.addresses[0][1]
            try:
                return await fetch_image(url, options)
            finally:
                await runner.cleanup()

        return asyncio.run(fetched())

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        self.requests.append(request)
        return await ROUTES[request.path](request)


def _info(address: str, port: int) -> tuple[Any, ...]:
    if ":" in address:
        return socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0)
    return socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)


async def _picture(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=PICTURE, headers={"Set-Cookie": "seen=1"})


async def _redirect(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(
        status=302, headers={"Location": request.query["to"], "Set-Cookie": "seen=1"}
    )


async def _loop(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=307, headers={"Location": "/loop"})


async def _missing(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=404)


async def _announced(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"x" * 60_000)


async def _endless(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(10_000):
        await response.write(b"x" * 10_000)
    return response


async def _trickle(request: web.BaseRequest) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"x")
        await asyncio.sleep(0.02)


async def _compressed(request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(body=b"\x1f\x8b", headers={"Content-Encoding": "gzip"})


ROUTES = {
    "/a.png": _picture,
    "/to": _redirect,
    "/loop": _loop,
    "/missing": _missing,
    "/announced": _announced,
    "/endless": _endless,
    "/trickle": _trickle,
    "/compressed": _compressed,
}


@pytest.fixture
def internet(monkeypatch) -> Iterator[Internet]:
    names = {
        "a.example": [[PUBLIC]],
        "b.example": [["93.184.215.15"]],
        "xn--bcher-kva.example": [[PUBLIC]],
        "inner.example": [[PRIVATE]],
        "mixed.example": [[PUBLIC, PRIVATE]],
        "nat64.example": [["64:ff9b::a9fe:a9fe"]],
        "rebinding.example": [[PUBLIC], ["127.0.0.1"]],
        "turned.example": [["127.0.0.1"], [PUBLIC]],
        "localhost": [["127.0.0.1"]],
    }
    return Internet(names, monkeypatch)


def test_the_bytes_at_a_public_address_are_fetched(internet):
    assert internet.fetch("http://a.example/a.png") == PICTURE
    assert internet.fetch(f"http://{PUBLIC}/a.png#part") == PICTURE
    assert internet.fetch("http://A.EXAMPLE./a.png") == PICTURE
    assert internet.fetch("http://bücher.example/a.png") == PICTURE
    assert internet.connected == [PUBLIC] * 4
    assert internet.lookups == ["a.example", "a.example.", "xn--bcher-kva.example"]


def test_nothing_is_fetched_where_that_is_not_switched_on(internet):
    with pytest.raises(QueryError, match="image_urls=true"):
        internet.fetch("http://a.example/a.png", FetchOptions())
    assert not internet.lookups


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "http://127.0.0.1/",
        "http://127.1/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://0x7f000001/",
        "http://0177.0.0.1/",
        "http://127.0.0.1./",
        "http://①②⑦.⓪.⓪.①/",
        "http://127。0。0。1/",
        "http://0/",
        "http://0.0.0.0/",
        "http://[::1]/",
        "http://[::]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:a9fe:a9fe]/",
        "http://[64:ff9b::a9fe:a9fe]/",
        "http://[64:ff9b:1::808:808]/",
        "http://[2002:7f00:1::]/",
        "http://[2001:0:7f00:1::]/",
        "http://[fe80::1%25eth0]/",
        "http://[fc00::1]/",
        "http://[ff02::1]/",
        "http://100.64.0.1/",
        "http://198.18.0.1/",
        "http://224.0.0.1/",
        "http://255.255.255.255/",
        "http://localhost/",
        "http://LOCALHOST./",
        "http://inner.example/",
        "http://mixed.example/",
        "http://nat64.example/",
        "http://turned.example/",
        "http://nobody.example/",
        "http://user@a.example/a.png",
        "http://:secret@a.example/a.png",
        "http://a.example:22/a.png",
        "http://a.example:0/a.png",
        "http://a.example:99999/a.png",
        "http://a.example\\@127.0.0.1/",
        "http://a.example%2f@127.0.0.1/",
        "http://[::1",
        "http://a..example/",
        "http://*.example/",
        f"http://{'a.' * 127}example/",
        "http:///a.png",
        "http://",
        "//a.example/a.png",
        "a.example/a.png",
        "file:///etc/passwd",
        "ftp://a.example/a.png",
        "gopher://a.example/",
        "data:image/png;base64,AAAA",
        "http://\ud800.example/",
        "http://a.example\r\nHost: inner.example/",
        "",
    ],
)
def test_an_address_that_is_not_on_the_internet_is_never_connected_to(internet, url):
    with pytest.raises(QueryError, match="image_url"):
        internet.fetch(url)
    assert internet.connected == []


def test_a_name_is_resolved_once_so_that_a_second_answer_changes_nothing(internet):
    assert internet.fetch("http://rebinding.example/a.png") == PICTURE
    assert internet.lookups == ["rebinding.example"]
    assert internet.connected == [PUBLIC]
    with pytest.raises(QueryError, match="no address on the public internet"):
        internet.fetch("http://rebinding.example/a.png")
    assert internet.connected == [PUBLIC]


@pytest.mark.parametrize(
    "target",
    [
        "http://127.0.0.1/a.png",
        "//169.254.169.254/latest",
        "http://2130706433/",
        "http://inner.example/a.png",
        "http://user:secret@b.example/a.png",
        "http://b.example:8080/a.png",
        "file:///etc/passwd",
        "http://[::1",
        "/to?to=http://inner.example/",
    ],
)
def test_a_redirect_is_checked_like_an_address(internet, target):
    with pytest.raises(QueryError) as refused:
        internet.fetch(f"http://a.example/to?to={target}")
    assert set(internet.connected) == {PUBLIC}
    assert PRIVATE not in str(refused.value)


def test_redirects_are_followed_three_times(internet):
    assert internet.fetch("http://a.example/to?to=http://b.example/a.png") == PICTURE
    assert internet.connected == [PUBLIC, "93.184.215.15"]
    assert internet.fetch("http://a.example/to?to=/to?to=/to?to=/a.png") == PICTURE
    before = len(internet.requests)
    with pytest.raises(QueryError, match="more than 3 times"):
        internet.fetch("http://a.example/loop")
    assert len(internet.requests) - before == 4


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("missing", "status 404"),
        ("announced", "larger than 50000"),
        ("endless", "larger than 50000"),
        ("compressed", "compressed"),
        ("trickle", "longer than 0.3 s"),
    ],
)
def test_a_reply_that_is_no_use_is_dropped_early(internet, path, told):
    options = ON.model_copy(update={"image_url_timeout_s": 0.3})
    since = time.monotonic()
    with pytest.raises(QueryError, match=told):
        internet.fetch(f"http://a.example/{path}", options)
    assert time.monotonic() - since < 1


def test_a_name_that_takes_long_to_resolve_is_given_up(internet, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(0.4))
    with pytest.raises(QueryError, match=r"longer than 0\.1 s"):
        internet.fetch("http://a.example/a.png", ON.model_copy(update={"image_url_timeout_s": 0.1}))


def test_nothing_of_ours_goes_along(internet, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    assert internet.fetch("http://a.example/to?to=/a.png") == PICTURE
    for request in internet.requests:
        assert request.headers["User-Agent"].startswith("clipray/")
        assert request.headers["Host"] == "a.example"
        assert request.headers["Accept-Encoding"] == "identity"
        assert not {"Cookie", "Authorization", "Referer"} & request.headers.keys()


def test_other_ports_can_be_allowed(internet):
    options = ON.model_copy(update={"image_url_ports": (8080,)})
    assert internet.fetch("http://a.example:8080/a.png", options) == PICTURE
    with pytest.raises(QueryError, match="another port than 8080"):
        internet.fetch("http://a.example/a.png", options)


def test_https_is_not_read_in_the_clear(internet):
    with pytest.raises(QueryError, match="cannot be fetched"):
        internet.fetch("https://a.example/a.png")
    assert internet.connected == [PUBLIC]
    assert internet.requests == []


def test_public_is_what_one_host_of_the_internet_has():
    for public in ("8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        assert is_public(parse(public)), public
    for other in ("2001:db8::1", "2001:20::1", "3fff::1", "192.88.99.1", "5f00::1", "::8.8.8.8"):
        assert not is_public(parse(other)), other


def test_loopback_is_this_machine_alone():
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "localhost"))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "::", "10.0.0.1", "a.example", ""))
