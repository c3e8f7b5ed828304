"""Hostile requests to a real server: refused or answered rightly, soon and in little memory."""

import base64
import http.client
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image

from clipray.serve.guard import GuardOptions, guarded
from clipray.serve.http import http_app
from clipray.serve.keys import Keys
from clipray.serve.meter import Meter
from tests.serve.local import LocalSearcher

KEY = "a-key-that-is-long-enough"
MAX_SECONDS = 3.0
MAX_GROWTH = 200 << 20
MAX_REFUSAL = 4096
JSON = {"authorization": f"Bearer {KEY}", "content-type": "application/json"}


@dataclass(frozen=True)
class Reply:
    status: int
    body: Any
    size: int
    headers: dict[str, str]


class Service:
    """uvicorn in a thread, over the routes and an in-process index."""

    def __init__(self, app: Any) -> None:
        self.app = app
        config = uvicorn.Config(app, port=0, log_level="error", lifespan="off")
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)

    def __enter__(self) -> "Service":
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def ask(
        self, body: bytes = b"", path: str = "/search", method: str = "POST", **headers: str
    ) -> Reply:
        sent = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        with _bounded():
            connection.request(method, path, body, sent)
            return _read(connection.getresponse())

    def settled(self) -> tuple[int, int]:
        """Requests at work and bytes held, once what is on its way out has gone."""
        limits, until = self.app._limits, time.monotonic() + 2
        while (limits.at_work or limits.held_bytes) and time.monotonic() < until:
            time.sleep(0.01)
        return limits.at_work, limits.held_bytes

    def connect(self, *lines: str) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=10)
        head = [
            "POST /search HTTP/1.1",
            "Host: localhost",
            *(f"{n}: {v}" for n, v in JSON.items()),
            *lines,
        ]
        sock.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        return sock


class _bounded:  # noqa: N801
    """Fails a test whose requests take long or much memory."""

    def __enter__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts here
        self.before, self.since = _memory("VmRSS"), time.monotonic()

    def __exit__(self, *_: object) -> None:
        assert time.monotonic() - self.since < MAX_SECONDS
        assert _memory("VmHWM") - self.before < MAX_GROWTH


def _memory(kind: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(kind))


def _read(response: http.client.HTTPResponse) -> Reply:
    raw = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(response.status, json.loads(raw), len(raw), headers)


@pytest.fixture(scope="module")
def service(flat_index, encoder) -> Iterator[Service]:
    routes = http_app(LocalSearcher({"drawings": [flat_index]}, encoder))
    app = guarded(routes, GuardOptions(body_timeout_s=0.5), Keys.of([KEY]), Meter(), local=True)
    with Service(app) as service:
        yield service


def assert_refused(reply: Reply, *statuses: int) -> None:
    assert reply.status in (statuses or (400,)), reply.body
    assert reply.body["error"]["type"]
    assert reply.body["error"]["message"]
    assert reply.size < MAX_REFUSAL


def dumped(**query: Any) -> bytes:
    return json.dumps(query).encode()


def listed(item: bytes, size: int) -> bytes:
    """A JSON list of about `size` bytes."""
    return b"[" + b",".join([item] * (size // (len(item) + 1))) + b"]"


def nested(opening: bytes, closing: bytes, depth: int) -> bytes:
    return b'{"text":"a","filter":' + opening * depth + b'{"caption":"a"}' + closing * depth + b"}"


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 200_000,
        b"[" * 200_000 + b"]" * 200_000,
        b'{"a":' * 200_000,
        nested(b'{"$not":', b"}", 200_000),
        nested(b'{"$not":', b"}", 900),
        nested(b'{"$and":[', b"]}", 300),
        b'{"embedding":[' + b",".join([b"NaN"] * 32) + b"]}",
        b'{"embedding":[' + b",".join([b"1e999"] * 32) + b"]}",
        dumped(embedding=[1e308] * 32),
        dumped(embedding=[1e-320] * 32),
        dumped(embedding=[0.0] * 32),
        dumped(embedding=[1.0] * 33),
        dumped(embedding=[]),
        dumped(embedding=[1.0] * 100_000),
        dumped(text="a", k=0),
        dumped(text="a", k=-1),
        dumped(text="a", k=10**9),
        dumped(text="a", k="5"),
        dumped(text="a", k=True),
        b'{"text":"a","k":' + b"1" * 5000 + b"}",
        b'{"text":"a","threshold":NaN}',
        dumped(query=[{"text": "a", "weight": 1e308}, {"text": "b", "weight": 1e308}]),
        dumped(query=[{"text": "a", "weight": 0}]),
        b'{"text":"\\ud800"}',
        b'{"key":"\\ud800"}',
        b'{"text":"a","columns":["\\ud800"]}',
        b'{"text":"a","filter":{"\\ud800":"x"}}',
        b'{"text":"a","\\ud800":1}',
        dumped(text="a " * 2_000_000),
        dumped(text="x" * 20_000),
        dumped(key="x" * 1_000_000),
        dumped(text="a", columns=["x" * 100_000]),
        dumped(text="a", columns=["caption"] * 100_000),
        dumped(**{"x" * 100_000: 1}),
        dumped(**{str(number): 1 for number in range(30_000)}),
        b'{"text":"a","columns":' + listed(b"1", 3 << 20) + b"}",
        b'{"query":' + listed(b"1", 3 << 20) + b"}",
        b'{"embedding":' + listed(b'"x"', 3 << 20) + b"}",
        listed(b"1", 3 << 20),
        json.dumps([{"text": "a"}] * 257).encode(),
        b"",
        b"null",
        b"\xff\xfe",
        b'{"text":"\x01"}',
        b'{"text":"a"} and more',
    ],
    ids=lambda body: body[:30].decode("latin-1") + f"-{len(body)}",
)
def test_a_hostile_query_is_refused_with_a_short_reason(service, body):
    assert_refused(service.ask(body), 400, 413)


def test_embed_refuses_as_search_does(service):
    bodies = (
        b"[" * 200_000,
        b'{"embedding":[NaN]}',
        dumped(text="x" * 20_000),
        b'{"key":"\\ud800"}',
    )
    for body in (*bodies, b'{"embedding":' + listed(b'"x"', 1 << 20) + b"}", b"", b"[]"):
        assert_refused(service.ask(body, path="/embed"), 400)


@pytest.mark.parametrize(
    "body",
    [
        dumped(**{str(number): 1 for number in range(60_000)}),
        listed(b"[]", 9 << 20),
        b'{"text":"a","filter":{"caption":{"$in":' + listed(b"1", 9 << 20) + b"}}}",
    ],
    ids=["keys", "lists", "values"],
)
def test_more_json_than_any_request_needs_is_not_parsed(service, body):
    assert_refused(service.ask(body), 413)


@pytest.mark.parametrize(
    "query",
    [
        {"text": ""},
        {"text": "   "},
        {"text": "a\0b"},
        {"text": "🦖👩‍👩‍👧‍👦" * 30},
        {"text": "漢" * 100},
        {"text": "qz" * 1000},
        {"text": "a", "k": 10_000},
        {"embedding": [3e38] * 32},
        {"text": "a", "filter": {"caption": {"$in": [str(n) for n in range(50_000)]}}},
    ],
    ids=lambda query: str(query)[:30],
)
def test_an_odd_query_is_answered(service, query):
    reply = service.ask(dumped(**query))
    assert reply.status == 200, reply.body
    assert "matches" in reply.body


def test_a_key_that_nobody_has_is_a_404(service):
    for key in ("\0", "../../etc/passwd", "x" * 4000):
        assert_refused(service.ask(dumped(key=key)), 404)


@pytest.mark.parametrize(
    "path",
    [
        "/images/drawings/NaN",
        "/images/drawings/" + "9" * 5000,
        "/images/drawings/1?size=0",
        "/images/drawings/1?size=" + "9" * 5000,
        "/images/%00/x",
        "/images/%ed%a0%80/x",
        "/web/..%2f..%2fguard.py",
        "/web/%2e%2e/guard.py",
        "/web/" + "a" * 5000,
        "//search",
        "/%ff%fe",
        "/nothing",
    ],
    ids=lambda path: path[:30],
)
def test_a_hostile_path_is_a_4xx(service, path):
    assert_refused(service.ask(path=path, method="GET"), 400, 404)


def test_a_method_that_a_path_does_not_have_is_a_405(service):
    for method in ("GET", "PUT", "DELETE", "TRACE"):
        assert_refused(service.ask(method=method), 405)


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", pixels), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*part) for part in parts)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def inflating(size: int) -> bytes:
    """zlib data that becomes `size` MiB of zeros, made without holding them."""
    packer = zlib.compressobj(1)
    return b"".join([packer.compress(bytes(1 << 20)) for _ in range(size)]) + packer.flush()


def picture(kind: str, mode: str = "RGB", size: tuple[int, int] = (64, 48), **more: Any) -> bytes:
    written = BytesIO()
    Image.effect_noise(size, 90).convert(mode).save(written, kind, **more)
    return written.getvalue()


def cut(kind: str, part: float) -> bytes:
    whole = picture(kind)
    return whole[: int(len(whole) * part)]


NO_IMAGES: dict[str, Callable[[], bytes]] = {
    "html": lambda: b"<!doctype html><html><body>404</body></html>",
    "svg": lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    "pdf": lambda: b"%PDF-1.7\n1 0 obj <<>> endobj\n%%EOF",
    "eps": lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage",
    "random": lambda: bytes(range(256)) * 40,
    "177 MP": lambda: png(14_000, 12_643),
    "900 MP": lambda: png(30_000, 30_000),
    "2^31 wide": lambda: png(2**31 - 1, 1),
    "zTXt bomb": lambda: png(64, 64, (b"zTXt", b"Comment\0\0" + inflating(200))),
    "iCCP bomb": lambda: png(64, 64, (b"iCCP", b"icc\0\0" + inflating(200))),
    "20000 x 1": lambda: picture("PNG", size=(20_000, 1)),
    "float TIFF": lambda: picture("TIFF", "F"),
    "JPEG 1 %": lambda: cut("JPEG", 0.01),
    "JPEG 50 %": lambda: cut("JPEG", 0.5),
    "PNG 50 %": lambda: cut("PNG", 0.5),
    "WebP 50 %": lambda: cut("WEBP", 0.5),
}
ODD_IMAGES: dict[str, Callable[[], bytes]] = {
    "CMYK": lambda: picture("JPEG", "CMYK"),
    "LA": lambda: picture("PNG", "LA"),
    "P": lambda: picture("PNG", "P", transparency=0),
    "16 bit": lambda: picture("PNG", "I;16"),
    "GIF": lambda: picture("GIF", save_all=True, append_images=[Image.new("RGB", (64, 48))] * 3),
    "1 x 1": lambda: picture("PNG", size=(1, 1)),
}
CUT_SHORT: dict[str, Callable[[], bytes]] = {
    "JPEG 99 %": lambda: cut("JPEG", 0.99),
    "PNG 99 %": lambda: cut("PNG", 0.99),
    "WebP 99 %": lambda: cut("WEBP", 0.99),
}


def image_query(data: bytes) -> bytes:
    return dumped(image=base64.b64encode(data).decode(), k=1)


@pytest.mark.parametrize("name", NO_IMAGES)
def test_what_is_no_image_is_refused(service, name):
    reply = service.ask(image_query(NO_IMAGES[name]()))
    assert_refused(reply, 400)
    assert reply.body["error"]["type"] == "ImageError"


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_an_odd_image_is_searched(service, name):
    reply = service.ask(image_query(ODD_IMAGES[name]()))
    assert reply.status == 200, reply.body
    assert len(reply.body["matches"]) == 1


@pytest.mark.parametrize("name", CUT_SHORT)
def test_an_image_that_lacks_its_end_is_searched_or_refused(service, name):
    reply = service.ask(image_query(CUT_SHORT[name]()))
    if reply.status != 200:
        assert_refused(reply, 400)


def test_an_image_that_is_none_in_base64_is_refused(service):
    for told in ("", "§", "AA\nAA", "A" * 1_000_001):
        assert_refused(service.ask(dumped(image=told)), 400)


def test_a_key_is_needed_and_checked(service):
    body = dumped(text="a")
    assert_refused(service.ask(body, authorization=""), 401)
    assert_refused(service.ask(body, authorization="Bearer another-key-than-ours"), 401)
    assert_refused(service.ask(path="/admin/refresh", authorization=""), 401)
    assert service.ask(path="/healthz", method="GET", authorization="").status == 200


def test_a_connection_goes_on_after_a_refusal(service):
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=10)
    for key, status in (("wrong", 401), (KEY, 200), ("wrong", 401), (KEY, 200)):
        headers = JSON | {"authorization": f"Bearer {key}"}
        connection.request("POST", "/search", dumped(text="a"), headers)
        first = connection.sock
        assert _read(connection.getresponse()).status == status
        assert connection.sock is first
    connection.close()


def test_300_megabytes_are_refused_by_their_announcement(service):
    with _bounded(), service.connect("Content-Length: 300000000") as sock:
        reply = _replied(sock)
        assert_refused(reply, 413)
        assert reply.headers["connection"] == "close"


@pytest.mark.parametrize("announced", ["Content-Length: 300000000", "Transfer-Encoding: chunked"])
def test_300_megabytes_that_are_sent_all_the_same_end_the_connection(service, announced):
    with _bounded(), service.connect(announced) as sock:
        reader = threading.Thread(target=lambda: replies.append(_replied(sock)))
        replies: list[Reply] = []
        reader.start()
        sent = _flood(sock, 300_000_000)
        reader.join()
        assert sent < 150_000_000
        assert_refused(replies[0], 413)


def _flood(sock: socket.socket, most: int) -> int:
    block = b" " * 65_536
    chunk = b"%x\r\n%s\r\n" % (len(block), block)
    sent = 0
    with suppress(OSError):
        while sent < most:
            sock.sendall(chunk)
            sent += len(block)
    return sent


def test_a_body_that_never_ends_is_a_408(service):
    for announced in ("Content-Length: 100", "Transfer-Encoding: chunked"):
        with _bounded(), service.connect(announced) as sock:
            sock.sendall(b"2\r\n{}\r\n")
            assert_refused(_replied(sock), 408)
            assert sock.recv(1) == b"", "closed"


def test_a_client_that_goes_away_holds_nothing(service):
    for announced in ("Content-Length: 10000000", "Transfer-Encoding: chunked"):
        with service.connect(announced) as sock:
            sock.sendall(b"10\r\n0123456789abcdef\r\n")
    assert service.settled() == (0, 0)


def _replied(sock: socket.socket) -> Reply:
    response = http.client.HTTPResponse(sock)
    response.begin()
    return _read(response)


def test_after_all_that_the_service_answers_as_before(service):
    reply = service.ask(dumped(text="a small red circle", k=1))
    assert reply.status == 200
    assert len(reply.body["matches"]) == 1
    assert service.settled() == (0, 0)
