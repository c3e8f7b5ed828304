"""clip-retrieval's API over an in-process index."""

import base64
import datetime
import json
import logging

import numpy as np
import pytest
from fastapi.testclient import TestClient

from clipray.duplicates import asks
from clipray.index import Index
from clipray.matches import Coverage
from clipray.query import MAX_K, Query
from clipray.search import find
from clipray.serve.http import http_app
from clipray.serve.knn_service import NOTE_HEADER, SIMILARITY
from clipray.serve.raters import NO_RATERS, Detector, Raters
from tests.serve.local import LocalSearcher

TEXT = "a large red circle"


@pytest.fixture(scope="module")
def searcher(flat_index, text_index, encoder):
    return LocalSearcher({"drawings": [flat_index, text_index]}, encoder)


@pytest.fixture
def http(searcher):
    return client(searcher)


def client(searcher, raters=NO_RATERS):
    app = http_app(searcher, raters)
    return TestClient(app, raise_server_exceptions=False)


def ask(http, **body):
    reply = http.post("/knn-service", json={"num_images": 5} | body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def ids(results):
    return [int(result["id"]) for result in results]


def first(index, encoder, k, **query):
    return find(Index.open(index), encoder, Query(k=k, **query)).ids


def test_a_text_finds_what_a_search_finds(http, flat_index, encoder):
    results = ask(http, text=TEXT, modality="image", indice_name="drawings")
    expected = find(Index.open(flat_index), encoder, Query(text=TEXT, k=5))
    assert ids(results) == expected.ids
    assert [result["similarity"] for result in results] == [match.score for match in expected]
    assert [result["caption"] for result in results] == [m.columns["caption"] for m in expected]
    assert [result["image_path"] for result in results] == [match.key for match in expected]
    assert results[0].keys() == {"id", "similarity", "caption", "image_path", "url"}


def test_texts_are_found_as_well(http, text_index, encoder):
    results = ask(http, text=TEXT, modality="text")
    assert ids(results) == first(text_index, encoder, 5, text=TEXT, modality="text")


def test_the_address_of_a_result_gives_its_picture_and_finds_it(http):
    url = ask(http, text=TEXT)[2]["url"]
    assert http.get(url).headers["content-type"] == "image/png"
    (found,) = ask(http, image_url=url, num_images=1)
    assert found["url"] == url
    assert found["similarity"] == pytest.approx(1, abs=1e-3)


def test_an_image_and_an_embedding_are_looked_for(http, photos, flat_index):
    data = base64.b64encode((photos / "even/0000.png").read_bytes()).decode()
    assert ask(http, text="", image=data)[0]["caption"] == "a small red circle"
    vector = Index.open(flat_index).find("shards/000000003")
    assert ask(http, embedding_input=vector.tolist())[0]["image_path"] == "shards/000000003"


def test_only_the_first_results_have_metadata(http, flat_index, encoder):
    results = ask(http, text=TEXT, num_images=2, num_result_ids=30)
    assert ids(results) == first(flat_index, encoder, 30, text=TEXT)
    assert ["caption" in result for result in results] == [True] * 2 + [False] * 28
    assert results[29].keys() == {"id", "similarity"}
    assert len(ask(http, text=TEXT, num_images=9, num_result_ids=3)) == 3
    assert ask(http, text=TEXT, num_images=0) == []


@pytest.mark.parametrize("headers", [{}, {"content-type": "text/plain;charset=UTF-8"}])
def test_the_web_front_is_understood(http, headers):
    body = {
        "text": TEXT,
        "image": None,
        "image_url": None,
        "embedding_input": None,
        "modality": "image",
        "num_images": 40,
        "indice_name": "drawings",
        "num_result_ids": 3000,
        "use_mclip": False,
        "deduplicate": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "aesthetic_score": "",
        "aesthetic_weight": "0.5",
    }
    reply = http.post("/knn-service", content=json.dumps(body), headers=headers)
    assert len(reply.json()) > 1
    assert "aesthetic" not in reply.headers[NOTE_HEADER]
    assert "use_safety_model: no detector" in reply.headers[NOTE_HEADER]
    assert http.get("/indices-list").json() == ["drawings"]


def test_metadata_takes_ids_as_numbers_and_as_strings(http):
    results = ask(http, text=TEXT)
    assert any(int(result["id"]) > 2**53 for result in results)
    for kind in (int, str):
        wanted = [kind(result["id"]) for result in results]
        rows = http.post("/metadata", content=json.dumps({"ids": wanted})).json()
        assert [row["id"] for row in rows] == wanted
        for row, result in zip(rows, results, strict=True):
            assert (
                row["metadata"].items()
                >= {name: result[name] for name in ("caption", "image_path", "url")}.items()
            )


def test_metadata_tells_nothing_of_where_files_lie_and_null_of_what_is_not_there(http):
    known = ask(http, text=TEXT)[0]["id"]
    body = {"ids": [known, "7"], "indice_name": "drawings"}
    (row, nothing) = http.post("/metadata", json=body).json()
    assert nothing == {"id": "7", "metadata": None}
    assert not {"source_path", "source_offset", "source_size", "id"} & row["metadata"].keys()
    assert http.post("/metadata", json={"ids": []}).json() == []


def test_near_duplicates_are_left_out_on_request(http, searcher):
    ask(http, text=TEXT)
    assert searcher.asked[-1].deduplicate is None
    ask(http, text=TEXT, deduplicate=True)
    assert (searcher.asked[-1].deduplicate, searcher.asked[-1].k) == (SIMILARITY, 5)


@pytest.mark.parametrize("name", ["safety", "violence"])
def test_what_is_flagged_makes_room_for_others(name, searcher, flat_index, encoder):
    everything = find(Index.open(flat_index), encoder, Query(text=TEXT, k=40))
    (vector,) = encoder.encode_texts([TEXT])
    detector = Detector(vector, -(everything.items[29].score + everything.items[30].score) / 2)
    http = client(searcher, Raters(**{name: detector}))
    used = {"safety": "use_safety_model", "violence": "use_violence_detector"}[name]
    assert ids(ask(http, text=TEXT, num_images=4)) == everything.ids[:4]
    searcher.asked.clear()
    assert ids(ask(http, text=TEXT, num_images=4, **{used: True})) == everything.ids[30:34]
    assert tuple(query.k for query in searcher.asked) == asks(4)
    assert ids(ask(http, text=TEXT, num_images=20, **{used: True})) == everything.ids[30:]


def test_the_aesthetic_vector_of_the_score_is_added(searcher, flat_index, encoder):
    scores = np.random.default_rng(0).standard_normal((10, encoder.identity.dim))
    http = client(searcher, Raters(aesthetic=scores.astype(np.float32)))
    body = {"text": TEXT, "num_images": 40, "aesthetic_score": "7", "aesthetic_weight": 0.2}
    mixed = encoder.encode_texts([TEXT])[0] + 0.2 * scores[7]
    assert ids(ask(http, **body)) == first(flat_index, None, 40, embedding=tuple(mixed))
    assert ids(ask(http, **body)) != ids(ask(http, text=TEXT, num_images=40))
    reply = http.post("/knn-service", json=body | {"aesthetic_score": 10})
    assert reply.status_code == 400
    assert "0 to 9" in reply.json()["error"]["message"]


def test_what_is_not_configured_is_said_in_every_reply_and_logged_once(http, caplog):
    body = {
        "text": TEXT,
        "use_mclip": True,
        "use_safety_model": True,
        "use_violence_detector": True,
        "aesthetic_score": 9,
        "num_result_ids": MAX_K + 1,
    }
    options = {"use_mclip", "use_safety_model", "use_violence_detector", "aesthetic_score"}
    with caplog.at_level(logging.WARNING, "clipray"):
        for _ in range(3):
            notes = http.post("/knn-service", json=body).headers[NOTE_HEADER].split("; ")
            assert {note.partition(":")[0] for note in notes} == options | {"num_result_ids"}
    assert len(caplog.messages) == 5
    assert NOTE_HEADER not in http.post("/knn-service", json={"text": TEXT}).headers


def test_a_partial_answer_says_so(flat_index, encoder):
    class Partial(LocalSearcher):
        async def search(self, query):
            reply = await super().search(query)
            return reply.model_copy(update={"coverage": Coverage(2, 1, 20, 40, (1,))})

    reply = client(Partial({"drawings": [flat_index]}, encoder)).post(
        "/knn-service", json={"text": TEXT}
    )
    assert reply.headers[NOTE_HEADER] == "partial: 20 of 40 rows were searched"


def test_metadata_of_any_kind_becomes_json(flat_index, encoder):
    day = datetime.datetime(2026, 11, 25, tzinfo=datetime.UTC)
    odd = {"taken": day, "score": float("nan"), "raw": b"a\xff", "tags": ["a", float("inf"), None]}

    class Odd(LocalSearcher):
        async def rows(self, index, ids):
            return [{"id": 1, "key": "a/1", "url": None, "note": None} | odd]

    (row,) = (
        client(Odd({"drawings": [flat_index]}, encoder)).post("/metadata", json={"ids": [1]}).json()
    )
    assert row["metadata"] == {
        "image_path": "a/1",
        "taken": str(day),
        "raw": "a\ufffd",
        "tags": ["a", None, None],
    }


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("https://example.org/a.png", "https://example.org/a.png"),
        ("file:a.png", "http://testserver/images/drawings/7"),
        (None, "http://testserver/images/drawings/7"),
    ],
)
def test_an_address_that_a_browser_opens_goes_before_ours(given, shown, flat_index, encoder):
    class Crawled(LocalSearcher):
        async def rows(self, index, ids):
            return [{"id": 7, "key": "a/1", "url": given, "source_path": "a.tar"}]

    (row,) = (
        client(Crawled({"drawings": [flat_index]}, encoder))
        .post("/metadata", json={"ids": [7]})
        .json()
    )
    assert row["metadata"] == {"image_path": "a/1", "url": shown}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({}, "give one of text"),
        ({"text": "", "image": None}, "give one of text"),
        ({"text": "a", "num_images": -1}, "num_images: "),
        ({"text": "a", "num_result_ids": 0}, "num_result_ids: "),
        ({"text": "a", "modality": "sound"}, "modality: "),
        ({"text": "a", "index": "drawings"}, "unknown key 'index'"),
        ({"text": "a" * 3000}, "text: "),
        ({"text": "a", "aesthetic_score": "best"}, "aesthetic_score: "),
        ({"image": "§"}, "base64"),
        ({"image": "AAAA"}, "not a readable image"),
        ({"image_url": "http://testserver/images/drawings/x"}, "no picture of this service"),
        ({"image_url": f"http://testserver/images/drawings/{2**63}"}, "no picture of this"),
        ({"embedding_input": [1.0]}, "32 dimensions"),
        ("text", ""),
    ],
)
def test_a_wrong_request_is_a_400_with_its_reason(http, body, told):
    reply = http.post("/knn-service", json=body)
    assert reply.status_code == 400
    assert told in reply.json()["error"]["message"]


@pytest.mark.parametrize("one", [-1, "x", "1.5", 2**63, "9" * 19, "9" * 4000, "²", None, [1]])
def test_what_is_no_id_is_a_400(http, one):
    assert http.post("/metadata", json={"ids": [one]}).status_code == 400


@pytest.mark.parametrize("content", [b"", b"{", b"[" * 200_000, b'{"embedding_input": [NaN]}'])
def test_a_body_that_is_no_request_is_a_400(http, content):
    assert http.post("/knn-service", content=content).status_code == 400


def test_what_does_not_exist_is_a_404(http):
    for path in ("/knn-service", "/metadata"):
        body = {"text": "a"} if path == "/knn-service" else {"ids": ["1"]}
        assert http.post(path, json=body | {"indice_name": "other"}).status_code == 404
    url = "http://testserver/images/drawings/7"
    assert http.post("/knn-service", json={"image_url": url}).status_code == 404


def test_openapi_shows_the_routes_with_examples(http):
    paths = http.get("/openapi.json").json()["paths"]
    for path in ("/knn-service", "/metadata"):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"]["properties"]["indice_name"]["description"]
        assert http.post(path, json=content["example"]).status_code == 200
        assert paths[path]["post"]["responses"]["200"]["content"]["application/json"]["example"]
    assert paths["/indices-list"]["get"]["responses"]["200"]["content"]
