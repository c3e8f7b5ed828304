"""The clients over HTTP, against a service that misbehaves as it is told to."""

import asyncio
import base64
import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate

import numpy as np
import pytest
from aiohttp import web

from clipray.client import AsyncClient, Client, ask
from clipray.client.ask import MAX_QUERIES, Ask, WeightedTerm
from clipray.client.refusal import Reply
from clipray.errors import (
    AccessError,
    ClipRayError,
    ConfigError,
    DamagedError,
    ImageError,
    InputError,
    NotFoundError,
    OverloadedError,
    QueryError,
    UnavailableError,
    UsageError,
)
from clipray.query import Query, Term
from clipray.serve import http
from tests.unruly import Running, Unruly, after, breaks_off, refuses, resets, says

BIG_ID = 2**62 + 1
COVERAGE = {
    "shards_total": 2,
    "shards_ok": 1,
    "rows_searched": 3,
    "rows_total": 7,
    "missing": [1],
    "of_a_newer_service": 1,
}
REPLY = {
    "matches": [
        {"id": str(BIG_ID), "key": "a/1", "score": 0.5, "caption": "x", "embedding": [0.6, 0.8]}
    ],
    "coverage": COVERAGE,
    "degraded": True,
    "version": 3,
    "took_ms": {"total": 1.5},
}


async def _echo(request: web.Request) -> web.StreamResponse:
    """Each match is called as its query's text."""
    body = await request.json()
    replies = [_named(ask.get("text", "")) for ask in (body if isinstance(body, list) else [body])]
    return web.json_response(replies if isinstance(body, list) else replies[0])


def _named(key):
    return REPLY | {"matches": [{"id": "1", "key": key, "score": 1.0}]}


@pytest.fixture
def service(monkeypatch):
    monkeypatch.delenv("CLIPRAY_KEY", raising=False)
    with Running(Unruly(_echo)) as service:
        yield service


@pytest.fixture
def client(service):
    with Client(service.url, backoff_s=0.01) as client:
        yield client


def test_a_reply_becomes_values(client, service):
    service.script.append(says(200, REPLY))
    found = client.search("x")
    (match,) = found.matches
    assert (match.id, match.key, match.score, match.columns) == (
        BIG_ID,
        "a/1",
        0.5,
        {"caption": "x"},
    )
    assert match.vector.dtype == np.float32
    assert match.vector.tolist() == pytest.approx([0.6, 0.8])
    assert (found.version, found.degraded, found.took_ms) == (3, True, {"total": 1.5})
    assert found.coverage.missing == (1,)


def test_the_fields_are_those_that_the_service_knows():
    assert Ask.__annotations__.keys() == Query.model_fields.keys()
    assert WeightedTerm.__annotations__.keys() == Term.model_fields.keys()
    assert MAX_QUERIES == http.MAX_QUERIES


def test_what_is_sent_is_a_query_of_the_service(client, service, tmp_path):
    (tmp_path / "a.png").write_bytes(b"\x89picture")
    client.search(
        query=[
            {"image": tmp_path / "a.png", "weight": np.float32(0.5)},
            {"embedding": np.array([1, 2], np.float16)},
        ],
        k=np.int64(3),
        index=None,
        modality="text",
        filter={"width": {"$gte": 3}},
        columns=("caption",),
        deduplicate=0.9,
    )
    (seen,) = service.seen
    query = Query(**seen.body)
    assert query.query == (Term(image=b"\x89picture", weight=0.5), Term(embedding=(1.0, 2.0)))
    assert (query.k, query.index, query.modality, query.deduplicate) == (3, None, "text", 0.9)


@pytest.mark.parametrize(
    ("query", "kind", "told"),
    [
        ({"embedding": [float("nan")]}, QueryError, "JSON"),
        ({"embedding": np.ones((2, 3))}, QueryError, r"shape \(2, 3\)"),
        ({"image": "a.png"}, QueryError, "Path"),
        ({"filter": {"x": object()}}, QueryError, "object"),
    ],
)
def test_what_cannot_be_sent_is_refused_before(client, service, query, kind, told):
    with pytest.raises(kind, match=told):
        client.search(**query)
    assert not service.seen


def test_a_missing_image_file_is_named(client, tmp_path):
    with pytest.raises(InputError, match=r"gone\.png"):
        client.search(image=tmp_path / "gone.png")


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (refuses(401, message="why"), AccessError),
        (refuses(403, message="why"), AccessError),
        (refuses(404, "NotFound", "why"), NotFoundError),
        (refuses(413, message="why"), QueryError),
        (refuses(400, "ImageError", "why"), ImageError),
        (refuses(429, message="why"), OverloadedError),
        (refuses(503, "OverloadedError", "why"), OverloadedError),
        (refuses(503, "Other", "why"), UnavailableError),
        (refuses(500, "DamagedError", "why"), DamagedError),
        (refuses(500, "KeyError", "why"), ClipRayError),
    ],
)
def test_an_error_is_of_the_kind_that_the_service_means(service, answer, kind):
    service.script.append(answer)
    with Client(service.url, retries=0) as client, pytest.raises(ClipRayError) as raised:
        client.search("x")
    assert type(raised.value) is kind
    assert str(raised.value) == "why"


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (says(200, "{", "application/json"), "no answer of a clipray service .status 200"),
        (says(200, "[" * 100_000), "no answer"),
        (says(200, [1]), "no answer"),
        (says(200, REPLY | {"matches": [{"id": "x"}]}), "no answer"),
        (says(200, {"matches": []}), "no answer"),
        (says(500, "<html>broken</html>", "text/html"), "status 500, 19 bytes of text/html"),
        (says(500, [1]), "status 500"),
        (says(302, "", location="https://elsewhere/x"), "redirects to https://elsewhere/x"),
        (says(200, "1" * 2_000_000), "longer than 1000000 bytes"),
    ],
)
def test_what_no_service_of_ours_says_is_an_error(service, answer, told):
    service.script.append(answer)
    with Client(service.url, max_reply_bytes=1_000_000) as client:
        with pytest.raises(ClipRayError, match=told):
            client.search("x")
        assert client.search("y").matches.ids == [1]
    assert len(service.seen) == 2


@pytest.mark.parametrize(
    "answer",
    [resets, breaks_off, refuses(429), refuses(502), refuses(503), says(504, "<html>")],
)
def test_what_may_pass_is_tried_again(client, service, answer):
    service.script.extend([answer] * 3)
    assert client.search("x").matches.ids == [1]
    assert [seen.body for seen in service.seen] == [{"text": "x"}] * 4


def test_tries_end(client, service):
    service.script.extend([refuses(503, "UnavailableError", "1 of 2 shards")] * 5)
    with pytest.raises(UnavailableError, match="1 of 2 shards") as raised:
        client.search("x")
    assert raised.value.__notes__ == ["tries: 4"]
    assert len(service.seen) == 4


@pytest.mark.parametrize("status", [400, 401, 404, 500])
def test_what_stays_wrong_is_asked_once(client, service, status):
    service.script.append(refuses(status))
    with pytest.raises(ClipRayError):
        client.search("x")
    assert len(service.seen) == 1


def test_a_service_is_left_alone_as_long_as_it_says(client, service):
    service.script.append(refuses(429, retry_after="1"))
    began = time.monotonic()
    client.search("x")
    assert time.monotonic() - began > 0.9


def test_a_wait_for_which_the_time_does_not_suffice_is_not_begun(client, service):
    service.script.append(refuses(429, "OverloadedError", "busy", retry_after="61"))
    began = time.monotonic()
    with pytest.raises(OverloadedError, match="busy"):
        client.search("x")
    assert time.monotonic() - began < 1
    assert len(service.seen) == 1


@pytest.mark.parametrize(
    ("told", "seconds"),
    [
        ("120", 120),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("soon", 0),
        ("-1", 0),
        ("1e9", 0),
        ("", 0),
        (None, 0),
    ],
    ids=["seconds", "past", "word", "negative", "float", "empty", "none"],
)
def test_a_wait_is_told_in_seconds(told, seconds):
    assert Reply("http://x", 429, "", b"", retry_after=told).wait_s == seconds


def test_a_wait_is_told_as_a_date():
    told = formatdate(time.time() + 3600, usegmt=True)
    reply = Reply("http://x", 429, "", b"", retry_after=told)
    assert reply.wait_s == pytest.approx(3600, abs=60)


def test_all_tries_together_end_in_time(service):
    service.script.extend([refuses(503), after(5, refuses(503))])
    began = time.monotonic()
    client = Client(service.url, backoff_s=0.01, timeout_s=0.3)
    with client, pytest.raises(ClipRayError, match=r"within 0\.3 s"):
        client.search("x")
    assert time.monotonic() - began < 2
    assert len(service.seen) == 2


def test_nobody_there_is_an_error_that_names_the_address():
    with Client("http://127.0.0.1:1", backoff_s=0.001) as client:
        with pytest.raises(ClipRayError, match="/indices: no answer") as raised:
            client.indices()
        assert raised.value.__notes__ == ["tries: 4"]
        assert client.ready() is False


def test_connections_are_used_again(client, service):
    for _ in range(5):
        client.search("x")
    assert len({seen.connection for seen in service.seen}) == 1


def test_the_key_goes_to_the_service_and_nowhere_else(service, monkeypatch, caplog):
    caplog.set_level("DEBUG", "clipray")
    monkeypatch.setenv("CLIPRAY_KEY", "from-outside")
    service.script.append(resets)
    for key in ("secret-1", None, ""):
        with Client(service.url, key, backoff_s=0.01) as client:
            client.search("x")
            assert repr(client) == f"Client('{service.url}')"
    assert [seen.key for seen in service.seen] == [
        *["Bearer secret-1"] * 2,
        "Bearer from-outside",
        None,
    ]
    assert "again in" in caplog.text
    assert "secret-1" not in caplog.text


@pytest.mark.parametrize("key", ["a b", "a\nb", "ä"])
def test_a_key_that_no_header_carries_is_refused_unshown(key):
    with pytest.raises(ConfigError) as raised:
        Client("http://x", key)
    assert key not in str(raised.value)


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://me:secret@x"])
def test_an_address_that_is_none_is_refused(url):
    with pytest.raises(ConfigError, match="url: ") as raised:
        AsyncClient(url)
    assert "secret" not in str(raised.value)


def test_many_queries_go_in_few_requests_and_keep_their_order(client, service):
    texts = [f"t{i}" for i in range(3 * MAX_QUERIES + 1)]
    service.script.extend([after(0.1, _echo), resets])
    found = client.search_many({"text": text} for text in texts)
    assert [one.matches.items[0].key for one in found] == texts
    assert sorted(len(seen.body) for seen in service.seen) == [1, *[MAX_QUERIES] * 4]
    assert client.search_many([]) == []


def test_a_request_of_many_pictures_is_not_too_long(client, service, monkeypatch):
    monkeypatch.setattr(ask, "MAX_BODY_BYTES", 16_000)
    pictures = [bytes([i]) * 5_000 for i in range(4)]
    client.search_many([{"image": picture} for picture in pictures])
    assert sorted(len(seen.body) for seen in service.seen) == [2, 2]
    sent = sorted(base64.b64decode(one["image"])[0] for s in service.seen for one in s.body)
    assert sent == [0, 1, 2, 3]


def test_few_requests_run_at_one_time_and_the_first_error_ends_all(client, service):
    service.script.extend([after(0.05, _echo)] * 3 + [refuses(400, message="why")])
    with pytest.raises(QueryError, match="why"):
        client.search_many([{"text": "x"}] * (20 * MAX_QUERIES))
    assert service.most <= 4
    assert len(service.seen) < 10


def test_a_reply_for_each_query_or_none(client, service):
    service.script.append(says(200, [REPLY]))
    with pytest.raises(ClipRayError, match="1 replies to 2 queries"):
        client.search_many([{"text": "x"}] * 2)


def test_the_other_methods_ask_their_routes(client, service):
    service.script.extend(
        [
            says(200, {"embedding": [0.5, 1.0], "dim": 2}),
            says(200, "bytes", "image/png"),
            says(200, {}),
            says(200, {"indices": []}),
            says(200, {"a/image": 2}),
            says(200, {"status": "ok"}),
            refuses(503),
        ]
    )
    assert client.embed("x").tolist() == [0.5, 1.0]
    assert client.picture("a/b", BIG_ID, size=16) == b"bytes"
    with pytest.raises(ClipRayError, match="no answer"):
        client.picture("a", 1)
    assert client.indices() == {"indices": []}
    assert client.refresh() == {"a/image": 2}
    assert [client.ready(), client.ready()] == [True, False]
    assert [seen.path for seen in service.seen] == [
        "/embed",
        f"/images/a%2Fb/{BIG_ID}?size=16",
        "/images/a/1",
        "/indices",
        "/admin/refresh",
        "/readyz",
        "/readyz",
    ]


def test_threads_share_a_client(client, service):
    service.otherwise = after(0.01, _echo)
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(client.search, [f"t{i}" for i in range(100)]))
    assert [one.matches.items[0].key for one in found] == [f"t{i}" for i in range(100)]
    assert service.most > 1


def test_tasks_share_a_client_within_its_connections(service):
    service.script.extend([after(0.02, _echo)] * 12)

    async def together():
        async with AsyncClient(service.url, connections=3) as client:
            return await asyncio.gather(*[client.search(f"t{i}") for i in range(12)])

    assert len(asyncio.run(together())) == 12
    assert service.most == 3
    assert len({seen.connection for seen in service.seen}) == 3


def test_another_event_loop_needs_another_client(service):
    client = AsyncClient(service.url)
    asyncio.run(client.search("x"))
    with pytest.raises(UsageError, match="another event loop"):
        asyncio.run(client.search("x"))


def test_a_closed_client_says_so(service):
    client = Client(service.url)
    client.search("x")
    client.close()
    client.close()
    with pytest.raises(UsageError, match="closed; make a new one"):
        client.search("x")

    async def closed():
        async with AsyncClient(service.url) as other:
            await other.search("x")
        await other.search("x")

    with pytest.raises(UsageError, match="closed; make a new one"):
        asyncio.run(closed())


def test_calls_that_wait_fail_when_the_client_is_closed(service):
    service.script.append(after(5, _echo))
    client = Client(service.url)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(client.search, "x")
        while not service.seen:
            time.sleep(0.01)
        client.close()
        with pytest.raises(UsageError, match="closed during a call"):
            waiting.result(timeout=2)


def test_a_client_that_is_dropped_leaves_no_thread(service):
    client = Client(service.url)
    client.search("x")
    thread = next(t for t in threading.enumerate() if t.name == "clipray-client")
    del client
    gc.collect()
    thread.join(timeout=2)
    assert not thread.is_alive()


FORKED = """
import os, sys
from clipray.client import Client
from clipray.errors import UsageError
client = Client(sys.argv[1])
client.search("x")
child = os.fork()
if not child:
    try:
        client.search("x")
    except UsageError as error:
        print(error, flush=True)
        client.close()
        os._exit(7)
    os._exit(0)
assert os.waitpid(child, 0)[1] >> 8 == 7
print(client.search("y").matches.items[0].key)
"""


def test_a_forked_process_needs_another_client(service):
    told = _python(FORKED, service.url)
    assert "before this process was forked" in told
    assert told.endswith("y\n")


IMPORTING = """
import sys, time
import clipray.client
spent = time.process_time()
heavy = {"torch", "ray", "faiss", "open_clip", "pydantic", "pyarrow"} & sys.modules.keys()
print(spent, *heavy)
"""


def test_importing_it_is_quick_and_brings_nothing_heavy():
    told = (_python(IMPORTING).split() for _ in range(3))  # others may slow down one
    assert any(float(seconds) < 0.6 and not heavy for seconds, *heavy in told)


def _python(code, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
