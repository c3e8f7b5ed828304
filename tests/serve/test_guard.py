"""What stands in front of the routes, asked without a server."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.requests import ClientDisconnect

from clipray.errors import ConfigError
from clipray.serve.guard import GuardOptions, guarded
from clipray.serve.keys import KeyOptions, Keys
from clipray.serve.meter import Meter
from tests.serve.asgi import Answer, ask, scope

READ, OTHER_READ, ADMIN = "reader-" + "r" * 16, "reader-" + "s" * 16, "admin-" + "a" * 16
KEYS = Keys.of([READ, OTHER_READ], [ADMIN])
SITE = "https://front.example"


async def echo(scope, receive, send) -> None:
    """Answers with the body that it was sent."""
    message = await receive()
    assert not message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": message["body"]})


def guard(keys: Keys = KEYS, local: bool = False, app: Any = echo, **options: Any) -> Any:
    return guarded(app, GuardOptions(**options), keys, Meter(), local=local)


def asked(app: Any, *what: Any, **headers: Any) -> Answer:
    return asyncio.run(ask(app, *what, **headers))


def bearer(key: str) -> str:
    return f"Bearer {key}"


@pytest.mark.parametrize(
    ("path", "key", "status"),
    [
        ("/search", READ, 200),
        ("/search", OTHER_READ, 200),
        ("/search", ADMIN, 200),
        ("/search", None, 401),
        ("/search", "x" * 23, 401),
        ("/search", READ[:-1], 401),
        ("/metrics", None, 401),
        ("/web", None, 401),
        ("//healthz", None, 401),
        ("/admin/refresh", ADMIN, 200),
        ("/admin/refresh", READ, 403),
        ("/admin/refresh", "x" * 23, 401),
        ("/admin/refresh", None, 401),
        ("/admin", READ, 403),
        ("/", None, 200),
        ("/web/app.js", None, 200),
        ("/healthz", None, 200),
        ("/readyz", None, 200),
    ],
)
def test_a_path_needs_the_right_key(path, key, status):
    headers = {"authorization": bearer(key)} if key else {}
    answer = asked(guard(), "GET", path, **headers)
    assert answer.status == status
    if status >= 400:
        assert answer.error["type"] == "AccessError"
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_a_path_is_judged_without_the_prefix_it_is_mounted_at():
    async def status(path: str) -> int:
        answer = Answer()

        async def send(message):
            answer.messages.append(message)

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        headers = {"authorization": bearer(READ)}
        await guard()(scope("GET", path, headers, root_path="/clip"), receive, send)
        return answer.status

    assert asyncio.run(status("/clip/admin/refresh")) == 403
    assert asyncio.run(status("/clip/search")) == 200


@pytest.mark.parametrize(
    "given", ["", "Bearer", "Bearer ", f"Basic {READ}", READ, f"bearer,{READ}"]
)
def test_a_header_that_is_no_bearer_key_is_no_key(given):
    assert asked(guard(), authorization=given).status == 401
    assert asked(guard(), authorization=f"bearer  {READ}").status == 200


def test_without_read_keys_everybody_reads_and_admin_needs_loopback_or_a_key():
    assert asked(guard(Keys())).status == 200
    refused = asked(guard(Keys()), "POST", "/admin/refresh", authorization=bearer(ADMIN))
    assert refused.status == 403
    assert "CLIPRAY_ADMIN_KEYS" in refused.error["message"]
    assert asked(guard(Keys(), local=True), "POST", "/admin/refresh").status == 200
    only_read = guard(Keys.of([READ]), local=True)
    assert asked(only_read, "POST", "/admin/refresh").status == 401
    assert asked(only_read, "POST", "/admin/refresh", authorization=bearer(READ)).status == 200


def test_keys_come_from_files_and_environment_together(tmp_path, caplog):
    file = tmp_path / "keys"
    file.write_text(f"# of the front\n\n{READ}\n  {OTHER_READ}\n")
    file.chmod(0o640)
    environment = {"CLIPRAY_READ_KEYS": f" {'e' * 16}, {'f' * 16},", "CLIPRAY_ADMIN_KEYS": ADMIN}
    keys = Keys.open(KeyOptions(read_keys=file), environment)
    assert len(keys.read) == 4
    assert "chmod 600" in caplog.text
    assert asked(guard(keys), authorization=bearer("f" * 16)).status == 200
    assert asked(guard(keys), authorization=bearer(OTHER_READ)).status == 200
    caplog.clear()
    file.chmod(0o600)
    Keys.open(KeyOptions(read_keys=file), {})
    assert not caplog.text


@pytest.mark.parametrize(
    ("lines", "told"),
    [
        ("short\n", "5 characters"),
        ("# nothing\n", "holds no key"),
        ("two words of a key\n", "a blank"),
        (ADMIN, "both"),
        ("schlüssel-schlüssel", "cannot be read"),
        pytest.param("# a long file\n" * 80_000, "larger than", id="long"),
        (None, "cannot be read"),
    ],
)
def test_a_bad_key_is_refused_without_showing_it(tmp_path, lines, told):
    file = tmp_path / "keys"
    if lines is not None:
        file.write_text(lines)
        file.chmod(0o600)
    with pytest.raises(ConfigError, match=told) as refused:
        Keys.open(KeyOptions(read_keys=file), {"CLIPRAY_ADMIN_KEYS": ADMIN})
    assert lines is None or lines.strip() not in str(refused.value)


def test_keys_are_not_shown():
    assert READ not in repr(KEYS)
    assert KEYS.read[0].hex() not in repr(KEYS)


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"x" * 1000
        await asyncio.sleep(0)


async def stalled() -> AsyncIterator[bytes]:
    yield b"{"
    await asyncio.sleep(60)


def test_a_body_reaches_the_route_whole():
    parts = [b"a" * 700, b"b" * 300]
    answer = asked(guard(Keys(), max_body_bytes=1024), "POST", "/search", parts)
    assert answer.body == b"".join(parts)
    assert asked(guard(Keys()), "POST", "/search", (b"abc",)).body == b"abc"


@pytest.mark.parametrize(
    ("parts", "status", "announced"),
    [
        ((b"x" * 2000,), 413, {}),
        ((), 413, {"content_length": "100000000000"}),
        (endless, 413, {}),
        (stalled, 408, {}),
        (stalled, 408, {"content_length": "100"}),
    ],
)
def test_a_body_that_is_too_long_or_too_slow_ends_the_connection(parts, status, announced):
    app = guard(Keys(), max_body_bytes=1024, body_timeout_s=0.05)
    parts = parts() if callable(parts) else parts
    answer = asked(app, "POST", "/search", parts, **announced)
    assert answer.status == status
    assert answer.error["type"] == "QueryError"
    assert app._limits.held_bytes == 0


def test_bodies_of_all_requests_are_bounded_together():
    app = guard(Keys(), max_held_bytes=1500, max_body_bytes=1024, body_timeout_s=0.2)

    async def both() -> list[Answer]:
        slow = ask(app, "POST", "/search", _then_stalled(b"x" * 1000))
        held = asyncio.create_task(slow)
        await asyncio.sleep(0.01)
        refused = await ask(app, "POST", "/search", (b"x" * 1000,))
        small = await ask(app, "POST", "/search", (b"x",))
        return [refused, small, await held]

    refused, small, _ = asyncio.run(both())
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert refused.error["type"] == "OverloadedError"
    assert small.status == 200
    assert app._limits.held_bytes == 0


async def _then_stalled(part: bytes) -> AsyncIterator[bytes]:
    yield part
    await asyncio.sleep(60)


def test_json_of_too_many_keys_or_values_is_not_parsed():
    keys = b"{" + b",".join(b'"%d":1' % number for number in range(60_000)) + b"}"
    for body in (keys, b"[" + b"1," * 2_100_000 + b"1]"):
        answer = asked(guard(Keys()), "POST", "/search", (body,))
        assert answer.status == 413
        assert "at most 50000" in answer.error["message"]
        assert "connection" not in answer.headers, "all of it has been read"
    vectors = json.dumps([{"embedding": [0.5] * 1000}] * 256).encode()
    assert asked(guard(Keys()), "POST", "/search", (vectors,)).status == 200


def test_requests_at_work_are_bounded_and_health_is_not():
    async def slow(scope, receive, send) -> None:
        if scope["path"] == "/search":
            await asyncio.sleep(0.1)
        await echo(scope, receive, send)

    app = guard(Keys(), app=slow, max_requests=2)

    async def crowd() -> list[Answer]:
        paths = ("/search", "/search", "/search", "/healthz", "/metrics", "/web/app.js")
        return await asyncio.gather(*[ask(app, "GET", path) for path in paths])

    first, second, third, *exempt = asyncio.run(crowd())
    assert (first.status, second.status, third.status) == (200, 200, 429)
    assert third.headers["retry-after"] == "1"
    assert third.error["type"] == "OverloadedError"
    assert [answer.status for answer in exempt] == [200, 200, 200]
    assert asked(app).status == 200


def test_slow_bodies_do_not_take_the_places_of_other_requests():
    app = guard(Keys(), max_requests=1, body_timeout_s=0.1)

    async def both() -> Answer:
        held = asyncio.create_task(ask(app, "POST", "/search", stalled()))
        await asyncio.sleep(0.01)
        answer = await ask(app, "POST", "/search", (b"{}",))
        await held
        return answer

    assert asyncio.run(both()).status == 200


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost", 200),
        ("LocalHost.:8000", 200),
        ("[::1]:8000", 200),
        ("127.8.9.1", 200),
        ("clip.lan:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("192.168.0.1:8000", 403),
        ("2130706433", 403),
        ("localhost:80:80", 403),
        ("evil.example@localhost", 403),
    ],
)
def test_on_loopback_only_its_own_names_are_answered(host, status):
    options = {"allowed_hosts": ("clip.lan",)}
    answer = asked(guard(Keys(), local=True, **options), "GET", "/healthz", host=host)
    assert answer.status == status
    assert status == 200 or "allowed_hosts" in answer.error["message"]
    assert asked(guard(Keys(), **options), "GET", "/healthz", host=host).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://clip.example:8000"}, 200),
        ({"origin": "https://clip.example:8000"}, 200),
        ({"origin": SITE}, 200),
        ({"origin": SITE, "sec-fetch-site": "cross-site"}, 200),
        ({"origin": "https://proxied.example", "sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({"origin": "https://evil.example"}, 403),
        ({"origin": "http://clip.example:9000", "sec-fetch-site": "same-site"}, 403),
        ({"origin": "null", "sec-fetch-site": "cross-site"}, 403),
        ({"origin": SITE + ".evil.example"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_post(headers, status):
    app = guard(Keys(), cors_origins=(SITE,))
    answer = asked(app, "POST", "/search", (b"{}",), host="clip.example:8000", **headers)
    assert answer.status == status
    assert status == 200 or "cors_origins" in answer.error["message"]


def test_a_body_may_say_that_it_is_anything():
    kinds = ("application/json", "text/plain", "application/x-www-form-urlencoded")
    for kind in kinds:  # as clients, clip-retrieval's front and `curl -d` send it
        assert asked(guard(Keys()), "POST", "/search", (b"{}",), content_type=kind).status == 200
    assert asked(guard(Keys()), "POST", "/search", (b"{}",)).status == 200, "as ClipClient does"


def test_a_site_that_is_let_in_may_ask_and_read():
    app = guard(cors_origins=(SITE,))
    wanted = {"access-control-request-method": "POST"}
    told = asked(app, "OPTIONS", "/search", origin=SITE, **wanted)
    assert told.status == 204
    assert told.headers["access-control-allow-origin"] == SITE
    assert {"authorization", "content-type"} <= set(
        told.headers["access-control-allow-headers"].split(", ")
    )
    assert "POST" in told.headers["access-control-allow-methods"]
    refused = asked(app, "POST", "/search", (b"{}",), origin=SITE)
    assert refused.status == 401
    assert refused.headers["access-control-allow-origin"] == SITE
    assert refused.headers["vary"] == "Origin"


def test_a_site_that_is_not_let_in_is_told_nothing():
    for app in (guard(), guard(cors_origins=(SITE,))):
        told = asked(app, "OPTIONS", "/search", origin="https://evil.example")
        assert told.body == b""
        assert not [name for name in told.headers if name.startswith("access-control")]
    everybody = guard(cors_origins=("*",))
    told = asked(everybody, "OPTIONS", "/search", origin="https://any.example")
    assert told.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["front.example", "https://front.example/", "ftp://x"])
def test_an_origin_that_no_browser_sends_is_refused(origin):
    with pytest.raises(ValueError, match="scheme://host"):
        GuardOptions(cors_origins=(origin,))


def test_every_reply_has_the_security_headers_once():
    async def own(scope, receive, send) -> None:
        headers = [(b"referrer-policy", b"origin")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    answers = [
        asked(guard(Keys())),
        asked(guard()),
        asked(guard(), "OPTIONS"),
        asked(guard(app=own), "GET", "/healthz"),
    ]
    for answer in answers:
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        names = [name for name, _ in answer.messages[0]["headers"]]
        assert len(names) == len(set(names))
    assert answers[-1].headers["referrer-policy"] == "origin"


def test_a_route_that_fails_is_a_500_with_a_reference_to_the_log(caplog):
    app = FastAPI()  # it sends a 500 of its own before it raises

    @app.get("/search")
    async def broken() -> None:
        raise ZeroDivisionError("secret")

    for one in (app, _raising):
        caplog.clear()
        answer = asked(guard(Keys(), app=one))
        assert answer.status == 500
        assert answer.error["type"] == "InternalError"
        reference = answer.error["message"].split()[-1]
        assert "secret" not in answer.body.decode()
        assert reference in caplog.text
        assert "ZeroDivisionError: secret" in caplog.text
        assert "x-content-type-options" in answer.headers


async def _raising(scope, receive, send) -> None:
    raise ZeroDivisionError("secret")


def test_a_500_that_a_route_sends_itself_is_sent_on():
    async def failing(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"mine"})

    answer = asked(guard(Keys(), app=failing))
    assert (answer.status, answer.body) == (500, b"mine")


def test_a_503_of_a_route_says_when_to_come_back():
    async def failing(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": 503, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert asked(guard(Keys(), app=failing)).headers["retry-after"] == "1"


def test_a_client_that_goes_away_is_no_error(caplog):
    async def gone_while_reading() -> list:
        sent = []

        async def receive():
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await guard(Keys())(scope("POST", "/search", {"content-length": "9"}), receive, send)
        return sent

    async def gone_while_sending() -> None:
        async def send(message):
            raise OSError("connection lost")

        async def receive():
            return {"type": "http.request", "body": b"", "more_body": False}

        await guard(Keys())(scope("GET", "/search", {}), receive, send)

    async def disconnected(scope, receive, send) -> None:
        raise ClientDisconnect

    assert asyncio.run(gone_while_reading()) == []
    asyncio.run(gone_while_sending())
    assert asked(guard(Keys(), app=disconnected)).messages == []
    assert not caplog.records


def test_the_access_log_has_a_line_a_request_and_no_secrets(caplog):
    caplog.set_level(logging.INFO, "clipray.access")
    app = guard(access_log=True)
    asked(app, "POST", "/search\n{", (b"body",), authorization=bearer(READ))
    asked(app, "GET", "/healthz")
    asked(app)
    asked(guard(), "GET", "/healthz")
    lines = [record.message for record in caplog.records if record.name == "clipray.access"]
    first, _, refused = (json.loads(line) for line in lines)
    assert first | {"ms": 0} == {
        "method": "POST", "path": "/search\n{", "status": 200, "ms": 0, "bytes": 4,
        "client": "198.51.100.7",
    }  # fmt: skip
    assert refused["status"] == 401
    assert refused["bytes"] > 0
    assert all("\n" not in line and READ not in line for line in lines)


def test_other_protocols_than_http_are_turned_away():
    async def websocket() -> list:
        sent = []

        async def send(message):
            sent.append(message)

        await guard(Keys())({"type": "websocket", "path": "/"}, None, send)
        return sent

    assert asyncio.run(websocket()) == [{"type": "websocket.close", "code": 1008}]
