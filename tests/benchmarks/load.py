"""Load on an HTTP service, from a process of its own that costs little.

`Load` is the handle; the process is this module run as a program, which takes one JSON object a
line and answers with one. Requests are bytes made beforehand; of a reply only the status and the
length are parsed, and of one in `VERIFY` also the keys, which must be those of the first pass.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERIFY = 32
PATIENCE_S = 60
KEY = re.compile(rb'"(?:key|image_path)":\s*"([^"]+)"')
HEAD = (
    "POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    "Content-Length: {length}\r\n\r\n"
)


@dataclass(frozen=True)
class Window:
    """What came of some seconds of load.

    Attributes:
        replies: all of them, those that failed included.
        failed: how many by what was wrong.
        p50_ms: of a request and its reply; likewise p95_ms.
        cpu_s: of the process that makes the load.
    """

    replies: int
    failed: dict[str, int]
    seconds: float
    p50_ms: float
    p95_ms: float
    cpu_s: float

    @classmethod
    def of(
        cls, took: list[float], seconds: float, cpu_s: float, failed: dict[str, int], each: int = 1
    ) -> "Window":
        """From seconds that each reply took, or each batch of `each` replies."""
        ordered = sorted(took)
        p50, p95 = (1e3 * ordered[int(share * len(took))] for share in (0.5, 0.95))
        return cls(each * len(took), failed, seconds, p50, p95, cpu_s)


class Load:
    """The process that makes the load; a context manager."""

    def __enter__(self) -> "Load":
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def open(self, name: str, port: int, path: str, bodies: Path, *, once: bool = False) -> None:
        """Make a target's requests from a JSON list in a file; `once`: never send one twice."""
        self._ask(do="open", name=name, port=port, path=path, bodies=str(bodies), once=once)

    def first_pass(self, name: str) -> list[list[str]]:
        """Keys of the replies to every request, sent once; those of later runs must be equal."""
        return list(self._ask(do="first_pass", name=name)["keys"])

    def run(self, name: str, concurrency: int, seconds: float) -> Window:
        """Keep so many requests under way for so long."""
        return Window(**self._ask(do="run", name=name, concurrency=concurrency, seconds=seconds))

    def _ask(self, **what: Any) -> dict[str, Any]:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, "the process that makes the load ended"
        return dict(json.loads(answer))


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.ended = False
        self._held = bytearray()
        self._reply: asyncio.Future[tuple[int, bytes]] | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    async def ask(self, request: bytes) -> tuple[int, bytes]:
        """Status and body."""
        self._reply = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return await self._reply

    def data_received(self, data: bytes) -> None:
        self._held += data
        head = self._held.find(b"\r\n\r\n")
        if head < 0:
            return
        fields = bytes(self._held[:head]).lower()
        start = head + 4
        end = start + int(fields.partition(b"\r\ncontent-length:")[2].split(b"\r\n")[0])
        if len(self._held) < end:
            return
        if fields.startswith(b"http/1.0") or b"\r\nconnection: close" in fields:
            self.ended = True
            self._transport.close()
        body = bytes(self._held[start:end])
        self._held.clear()
        assert self._reply
        self._reply.set_result((int(fields[9:12]), body))

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True
        if self._reply and not self._reply.done():
            self._reply.set_exception(error or ConnectionResetError("closed without a reply"))


@dataclass
class Target:
    """Where requests go, and which.

    Attributes:
        expected: keys by request, once a first pass has been made.
        cursor: how many were sent; it goes on from run to run.
    """

    port: int
    requests: list[bytes]
    once: bool
    expected: list[list[str]] = field(default_factory=list)
    cursor: int = 0

    @classmethod
    def open(cls, ask: dict[str, Any]) -> "Target":
        """Read the bodies and put a head before each."""
        bodies = [json.dumps(body) for body in json.loads(Path(ask["bodies"]).read_text())]
        requests = [
            (HEAD.format(path=ask["path"], port=ask["port"], length=len(body)) + body).encode()
            for body in bodies
        ]
        return cls(ask["port"], requests, ask["once"])

    def next(self) -> int:
        """Number of the request to send."""
        number = self.cursor
        self.cursor += 1
        assert number < len(self.requests) or not self.once, "too few requests to send each once"
        return number % len(self.requests)

    def wrong(self, number: int, status: int, body: bytes) -> str:
        """What is wrong with a reply, or nothing."""
        if status != 200:
            return f"status {status}"
        if self.expected and self.cursor % VERIFY == 0 and keys_in(body) != self.expected[number]:
            return "other keys"
        return ""


@dataclass
class Tally:
    """Of one run."""

    took: list[float] = field(default_factory=list)
    failed: Counter[str] = field(default_factory=Counter)


def main() -> None:
    targets: dict[str, Target] = {}
    for line in sys.stdin:
        ask = json.loads(line)
        answer: dict[str, Any] = {}
        if ask["do"] == "open":
            targets[ask["name"]] = Target.open(ask)
        elif ask["do"] == "first_pass":
            answer["keys"] = asyncio.run(first_pass(targets[ask["name"]]))
        else:
            answer = asyncio.run(run(targets[ask["name"]], ask["concurrency"], ask["seconds"]))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


async def first_pass(target: Target) -> list[list[str]]:
    """Send every request once, one after the other."""
    connection, found = None, []
    for request in target.requests:
        connection = await connected(target.port, connection)
        status, body = await connection.ask(request)
        assert status == 200, f"{status}: {body[:500]!r}"
        found.append(keys_in(body))
    target.expected = found
    return found


async def run(target: Target, concurrency: int, seconds: float) -> dict[str, Any]:
    """Send for so long, and wait for what is under way then."""
    tally = Tally()
    began, used = time.perf_counter(), time.process_time()
    deadline = began + seconds
    senders = [send(target, deadline, tally) for _ in range(concurrency)]
    await asyncio.wait_for(asyncio.gather(*senders), seconds + PATIENCE_S)
    seconds, used = time.perf_counter() - began, time.process_time() - used
    return asdict(Window.of(tally.took, seconds, used, tally.failed))


async def send(target: Target, deadline: float, tally: Tally) -> None:
    """One request after the other; a connection that the service closed is made anew, and timed."""
    connection = None
    while (began := time.perf_counter()) < deadline:
        number = target.next()
        try:
            connection = await connected(target.port, connection)
            status, body = await connection.ask(target.requests[number])
            wrong = target.wrong(number, status, body)
        except OSError as error:
            wrong = type(error).__name__
        tally.took.append(time.perf_counter() - began)
        if wrong:
            tally.failed[wrong] += 1


async def connected(port: int, connection: Connection | None) -> Connection:
    """The connection, or a new one when it has ended."""
    if connection and not connection.ended:
        return connection
    loop = asyncio.get_running_loop()
    return (await loop.create_connection(Connection, "127.0.0.1", port))[1]


def keys_in(body: bytes) -> list[str]:
    """Keys of the rows, in the reply of any of the services."""
    return [key.decode() for key in KEY.findall(body)]


if __name__ == "__main__":
    main()
