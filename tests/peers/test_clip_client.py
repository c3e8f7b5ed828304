"""clip-retrieval's own client asks the service as it asks its own back end."""

import json
import socket
import time
import urllib.request
from threading import Thread

import pytest
import uvicorn

from clipray.index import Index
from clipray.query import Query
from clipray.search import find
from clipray.serve.http import http_app
from clipray.serve.knn_service import SIMILARITY
from tests.peers.environment import command, run
from tests.peers.test_readers import READ_BACK
from tests.serve.local import LocalSearcher

pytestmark = pytest.mark.soak

ASK = READ_BACK.with_name("ask.py")
TEXT = "a large red circle"


@pytest.fixture(scope="module")
def url(flat_index, text_index, encoder):
    searcher = LocalSearcher({"drawings": [flat_index, text_index]}, encoder)
    app = http_app(searcher)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join()


def test_its_client_gets_what_a_search_finds(
    url, flat_index, text_index, encoder, photos, tmp_path
):
    index, picture = Index.open(flat_index), photos / "even/0000.png"
    vector = index.find("shards/000000003").tolist()
    questions = [
        {"query": {"text": TEXT}, "deduplicate": False, "num_images": 7},
        {"query": {"text": TEXT}},
        {"query": {"text": TEXT}, "deduplicate": False, "modality": "text"},
        {"query": {"image": str(picture)}, "num_images": 1},
        {"query": {"embedding_input": vector}, "num_images": 1},
    ]
    plain, unlike, texts, [by_image], [by_vector] = asked(url, questions, tmp_path)
    expected = find(index, encoder, Query(text=TEXT, k=7))
    assert ids(plain) == expected.ids
    assert [row["similarity"] for row in plain] == [match.score for match in expected]
    assert [row["caption"] for row in plain] == [match.columns["caption"] for match in expected]
    query = Query(text=TEXT, k=40, deduplicate=SIMILARITY)
    assert ids(unlike) == find(index, encoder, query).ids
    assert ids(texts) == find(Index.open(text_index), encoder, Query(text=TEXT, k=40)).ids
    assert by_image["caption"] == "a small red circle"
    assert by_vector["image_path"] == "shards/000000003"


def test_the_address_of_a_result_is_one_to_ask_with(url, tmp_path):
    ((first, *_),) = asked(url, [{"query": {"text": TEXT}}], tmp_path)
    with urllib.request.urlopen(first["url"]) as reply:
        assert reply.headers["content-type"] == "image/png"
    (found,) = asked(url, [{"query": {"image": first["url"]}, "num_images": 1}], tmp_path)
    assert [row["id"] for row in found] == [first["id"]]
    body = json.dumps({"ids": [first["id"]], "indice_name": "drawings"}).encode()
    with urllib.request.urlopen(f"{url}/metadata", data=body) as reply:
        (row,) = json.load(reply)
    assert row["id"] == first["id"]
    assert row["metadata"]["caption"] == first["caption"]


def asked(url, questions, folder):
    line = command("python", ASK, f"{url}/knn-service", json.dumps(questions))
    return json.loads(run(line, folder).splitlines()[-1])


def ids(rows):
    return [int(row["id"]) for row in rows]
