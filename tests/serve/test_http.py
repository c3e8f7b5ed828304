"""The HTTP API over an in-process index: routes, replies, refusals."""

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
from fastapi.testclient import TestClient

from clipray.encoder import Encoder
from clipray.errors import UnavailableError
from clipray.index import Index
from clipray.query import Query
from clipray.search import find
from clipray.serve.args import Listen
from clipray.serve.front import Front
from clipray.serve.http import http_app
from tests.serve.local import LocalSearcher
from tests.serve.test_front import free_port


class Resting(LocalSearcher):
    async def image(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        raise UnavailableError(f"{index} {row_id} {size}: resting")


@pytest.fixture(scope="module")
def http(flat_index: Path, encoder: Encoder) -> TestClient:
    app = http_app(Resting({"drawings": [flat_index]}, encoder))
    return TestClient(app, raise_server_exceptions=False)


def test_search_answers_as_the_index_does(http, flat_index, encoder):
    query = Query(text="a large red circle", k=5)
    expected = find(Index.open(flat_index), encoder, query)
    reply = http.post("/search", json={"text": "a large red circle", "k": 5}).json()
    assert [int(match["id"]) for match in reply["matches"]] == expected.ids
    assert [match["score"] for match in reply["matches"]] == [m.score for m in expected]
    assert reply["coverage"]["rows_searched"] == reply["coverage"]["rows_total"] == 40
    assert reply["degraded"] is False
    assert reply["version"] == 1


def test_a_list_of_queries_gets_a_list_of_replies(http):
    queries = [{"text": "a small ring", "k": 2}, {"key": "shards/000000000", "k": 1}]
    replies = http.post("/search", json=queries).json()
    assert [len(reply["matches"]) for reply in replies] == [2, 1]
    assert replies[1]["matches"][0]["key"] == "shards/000000000"


def test_ids_are_strings_that_keep_all_their_digits(http, flat_index):
    reply = http.post("/search", json={"key": "shards/000000001", "k": 40}).json()
    ids = [match["id"] for match in reply["matches"]]
    assert all(isinstance(one, str) for one in ids)
    assert any(int(one) > 2**53 for one in ids)


def test_embed_gives_a_unit_vector(http, encoder):
    reply = http.post("/embed", json={"text": "a ring"}).json()
    assert reply["dim"] == encoder.identity.dim
    assert np.linalg.norm(reply["embedding"]) == pytest.approx(1, abs=1e-6)


def test_an_image_in_base64_is_searched(http, photos):
    data = base64.b64encode((photos / "even/0000.png").read_bytes()).decode()
    reply = http.post("/search", json={"image": data, "k": 1}).json()
    assert reply["matches"][0]["caption"] == "a small red circle"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "exactly one of"),
        ({"text": "a", "key": "b"}, "exactly one of"),
        ({"text": "a", "k": 0}, "k: "),
        ({"text": "a", "k": -1}, "k: "),
        ({"text": "a", "k": 10**9}, "k: "),
        ({"text": "a", "k": "5"}, "k: "),
        ({"txt": "a"}, "unknown key 'txt', did you mean 'text'?"),
        ({"query": [{"txt": "a"}]}, "unknown key 'query.0.txt', did you mean 'text'?"),
        ({"text": "a" * 3000}, "text: "),
        ({"text": "a", "columns": ["colour"]}, "no column colour"),
        ({"image": "AAAA"}, "not a readable image"),
        ({"image": "§"}, "base64"),
        ({"embedding": [1.0]}, "32 dimensions"),
        ({"embedding": [0.0] * 32}, "points nowhere"),
        ({"query": [{"text": "a"}, {"text": "a", "weight": -1.0}]}, "points nowhere"),
        ([{"text": "a", "k": 0}], "k: "),
        ("text", ""),
    ],
)
def test_a_wrong_query_is_a_400_with_its_reason(http, body: Any, told: str):
    response = http.post("/search", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert told in error["message"]
    assert error["type"]
    assert "function-after" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [{"text": "a", "index": "other"}, {"text": "a", "modality": "text"}, {"key": "nobody"}],
)
def test_what_does_not_exist_is_a_404(http, body):
    response = http.post("/search", json=body)
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "NotFoundError"


def test_a_wrong_method_is_told_the_right_one(http):
    response = http.get("/search")
    assert response.status_code == 405
    assert response.json()["error"]["message"].endswith("use POST")


@pytest.mark.parametrize("text", ["NaN", "1e999", "-Infinity"])
def test_numbers_that_are_none_are_refused(http, text):
    body = f'{{"embedding": [{", ".join([text] * 32)}]}}'
    response = http.post("/search", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 400


def test_a_service_that_cannot_answer_says_503(http):
    response = http.get("/images/drawings/1")
    assert response.status_code == 503
    assert response.json()["error"] == {
        "type": "UnavailableError",
        "message": "drawings 1 None: resting",
    }


def test_indices_tells_what_is_served(http):
    (index,) = http.get("/indices").json()["indices"]
    assert index["name"] == "drawings"
    assert index["modalities"]["image"]["rows"] == 40
    assert "caption" in index["modalities"]["image"]["columns"]


def test_page_and_its_files_are_there_and_nothing_else(http):
    for path, kind in (("/", "html"), ("/web/app.js", "javascript"), ("/web/style.css", "css")):
        response = http.get(path)
        assert response.status_code == 200
        assert kind in response.headers["content-type"]
    assert http.get("/web/search.py").status_code == 404


@pytest.mark.parametrize("path", ["/", "/healthz", "/indices", "/web/app.js", "/web/none.js"])
def test_head_is_answered_as_get_without_the_body(http, path):
    async def asked():
        listen = Listen(port=free_port())
        front = Front(http.app, listen)
        one = aiohttp.TCPConnector(limit=1)  # the second reply begins where the first ends
        async with (
            aiohttp.ClientSession(listen.url, connector=one) as session,
            session.head(path) as head,
            session.get(path) as whole,
        ):
            body = await whole.read()
        await front.close()
        return head, whole, body

    head, whole, body = asyncio.run(asked())
    assert head.status == whole.status
    for name in ("content-type", "content-length"):
        assert head.headers[name] == whole.headers[name]
    assert len(body) == int(head.headers["content-length"])


def test_head_of_a_search_is_told_the_right_method(http):
    assert http.head("/search").status_code == 405


def test_openapi_describes_the_query(http):
    described = http.get("/openapi.json").json()
    assert "Query" in described["components"]["schemas"]
    assert {"/search", "/embed", "/indices"} <= described["paths"].keys()
