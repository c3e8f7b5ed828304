"""The service on a real Ray: one answer, whichever way it is asked for."""

import asyncio
import json
import shutil
import socket
import time
from io import BytesIO
from pathlib import Path

import aiohttp
import numpy as np
import pytest
from PIL import Image
from ray import serve

from clipray import clip
from clipray.client import AsyncClient, Client
from clipray.errors import ClipRayError, ConfigError, ImageError, MismatchError, QueryError
from clipray.index import Index
from clipray.index.deletions import Doomed
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.workers import Here
from clipray.manifest import ModelSource
from clipray.query import Query
from clipray.search import SearchConfig, find, query_vector, search
from clipray.serve.app import APP_NAME
from clipray.serve.local import ServeConfig, logs_folder, start

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def growing(flat_index, tmp_path_factory):
    """The same index in a folder that a test may change."""
    return Path(shutil.copytree(flat_index, tmp_path_factory.mktemp("served") / "index"))


@pytest.fixture(scope="module")
def url(growing, text_index):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    indices = (f"drawings={growing}", f"drawings={text_index}")
    yield start(ServeConfig(index=indices, groups=2, port=port, watch_s=0, access_log=True))
    serve.shutdown()


@pytest.fixture
def client(url):
    with Client(url) as client:
        yield client


TEXT = "a small red ring"
TREE = {"$and": [{"caption": {"$contains": "red"}}, {"key": {"$ne": "shards/000000000"}}]}
TERMS = (
    {"text": "a large ring"},
    {"key": "shards/000000003", "weight": 0.5},
    {"text": "blue", "weight": -0.4},
)


@pytest.mark.parametrize(
    "ask",
    [
        {"text": TEXT},
        {"image": "even/0002.png", "k": 40},
        {"key": "shards/000000003", "columns": ("caption", "width")},
        {"embedding": tuple(range(1, 33)), "k": 7},
        {"query": TERMS, "threshold": 0.2},
        {"text": TEXT, "filter": TREE, "k": 40},
        {"query": TERMS, "filter": TREE, "deduplicate": 0.97, "k": 5, "embeddings": True},
    ],
    ids=["text", "image", "key", "embedding", "combined", "filtered", "all"],
)
def test_http_index_and_exact_search_give_the_same(client, flat_index, encoder, photos, ask):
    if "image" in ask:
        ask = ask | {"image": (photos / ask["image"]).read_bytes()}
    served = client.search(**ask).matches
    index, query = Index.open(flat_index), Query(**ask)
    assert served == find(index, encoder, query)
    vector = query_vector(query.terms, encoder, index.find)
    most = 40 if query.deduplicate else query.k
    (exact,) = index.search(
        vector[None], most, query.threshold, query.filter, query.columns, exact=True
    )
    if query.deduplicate:
        assert set(served.ids) < set(exact.ids)
    else:
        assert served == exact
    assert served


def test_the_command_gives_the_same(client, flat_index):
    command = search(SearchConfig(index=flat_index, text=TEXT, k=10)).matches
    assert [match.to_json() for match in client.search(TEXT, k=10).matches] == list(command)


def test_a_filter_selects_over_http_as_in_process(client, flat_index, encoder):
    tree = {"caption": {"$contains": "red"}, "key": {"$ne": "shards/000000000"}}
    served = client.search("a small red ring", k=40, filter=tree).matches
    local = find(Index.open(flat_index), encoder, Query(text="a small red ring", k=40, filter=tree))
    assert served.ids == local.ids
    assert 0 < len(served) < 40
    assert all("red" in match.columns["caption"] for match in served)
    with pytest.raises(QueryError, match="no column colour; there are"):
        client.search("a ring", filter={"colour": "red"})


def test_a_picture_finds_pictures_and_texts(client, photos):
    picture = photos / "even/0002.png"
    (first, *_) = client.search(image=picture, k=3).matches
    assert first.columns["caption"] == "a small blue circle"
    words = client.search(image=picture, k=3, modality="text")
    assert "a small blue circle" in [match.columns["caption"] for match in words.matches]


def test_terms_and_keys_work_over_both_modalities(client):
    terms = [{"key": "shards/000000000"}, {"text": "a large ring", "weight": -0.2}]
    assert len(client.search(query=terms, k=4).matches) == 4
    (text,) = client.search(key="shards/000000000", k=1, modality="text").matches
    assert text.columns["caption"].startswith("a small")


def test_a_reply_says_what_it_was_computed_from(client):
    found = client.search("a ring", k=1)
    assert (found.coverage.shards_ok, found.coverage.shards_total) == (2, 2)
    assert found.coverage.rows_searched == 40
    assert not found.degraded
    assert found.version == 1
    assert found.took_ms["total"] > 0


def test_many_queries_at_once_get_their_own_answers(url, client):
    texts = [f"a {size} {colour} ring" for size in ("small", "large") for colour in ("red", "blue")]
    alone = [client.search(text, k=3).matches.ids for text in texts]

    async def together() -> list[list[int]]:
        async with AsyncClient(url) as service:
            replies = await asyncio.gather(*[service.search(t, k=3) for t in texts * 8])
        return [reply.matches.ids for reply in replies]

    assert asyncio.run(together()) == alone * 8
    assert [
        r.matches.ids for r in client.search_many([{"text": t, "k": 3} for t in texts])
    ] == alone


def test_pictures_come_whole_and_small(client, shards):
    (match,) = client.search("a large green square", k=1).matches
    whole = Image.open(BytesIO(client.picture("drawings", match.id)))
    assert (whole.format, whole.size) == ("PNG", (48, 48))
    small = Image.open(BytesIO(client.picture("drawings", match.id, size=16)))
    assert (small.format, small.size) == ("JPEG", (16, 16))
    with pytest.raises(QueryError, match="no row"):
        client.picture("drawings", 1)


def test_a_refusal_reaches_the_client_with_its_reason(client):
    with pytest.raises(QueryError, match="k: "):
        client.search("a", k=0)
    with pytest.raises(ImageError, match="not a readable image"):
        client.search(image=b"no image")
    with pytest.raises(QueryError, match="no index other"):
        client.search("a", index="other")
    assert len(client.embed("a ring")) == 32
    with Client("http://127.0.0.1:1") as nobody, pytest.raises(ClipRayError, match="no answer"):
        nobody.indices()


def test_a_handle_answers_inside_the_cluster(url, client):
    handle = serve.get_app_handle(APP_NAME)
    reply = handle.search.remote(Query(text="a ring", k=2)).result(timeout_s=30)
    assert reply.matches.ids == client.search("a ring", k=2).matches.ids


def test_metrics_and_readiness_are_told(url):
    async def text(path):
        async with aiohttp.ClientSession() as session, session.get(url + path) as response:
            assert response.status == 200
            return await response.text()

    metrics = asyncio.run(text("/metrics"))
    assert 'clipray_index_version{slot="drawings/image"}' in metrics
    assert 'clipray_requests_total{route="/search",status="200"}' in metrics
    assert 'clipray_requests_total{route="/images/{index}/{row_id}",status="404"}' in metrics
    assert '"ShardGroup-1":true' in asyncio.run(text("/readyz"))


def test_a_new_version_is_served_when_asked_for(client, growing):
    (doomed, *_) = client.search(TEXT, k=2).matches
    folder = IndexFolder(growing)
    remove_rows(folder, Doomed(ids=np.array([doomed.id])), Here(growing))
    assert client.search(TEXT, k=2).version == 1
    assert client.refresh() == {
        "versions": {"drawings/image": 2, "drawings/text": 1},
        "failures": {},
    }
    found = client.search(TEXT, k=40)
    assert found.version == 2
    assert len(found.matches) == 39
    assert doomed.id not in found.matches.ids


def test_only_loopback_is_listened_on(url):
    async def status(host: str) -> int:
        port = url.rsplit(":", 1)[1]
        address = f"http://{host}:{port}/healthz"
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            return response.status

    assert asyncio.run(status("127.0.0.1")) == 200
    own = socket.gethostbyname(socket.gethostname())
    if not own.startswith("127."):
        with pytest.raises(aiohttp.ClientConnectorError):
            asyncio.run(status(own))


def test_the_access_log_is_among_the_logs_of_ray(client):
    client.search("a ring that nobody else asks for", k=1)
    with pytest.raises(QueryError):
        client.picture("drawings", 4711)
    deadline = time.monotonic() + 5
    while len(lines := logged("/images/drawings/4711")) < 1 and time.monotonic() < deadline:
        time.sleep(0.02)  # a line is written after its reply
    (asked,) = map(json.loads, lines)
    assert (asked["method"], asked["status"], asked["client"]) == ("GET", 404, "127.0.0.1")
    assert json.loads(logged("/search")[-1])["status"] == 200
    assert not logged("nobody else")


def logged(what):
    """Lines of the access log with `what` in them."""
    said = "".join(path.read_text() for path in logs_folder().glob("worker-*.err"))
    return [line for line in said.splitlines() if line.startswith("{") and what in line]


def test_a_taken_port_is_said(flat_index):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port}"):
            start(ServeConfig(index=(str(flat_index),), port=port))


def test_more_gpus_than_there_are_are_not_waited_for(flat_index):
    with pytest.raises(ConfigError, match="gpus: 99 asked for, this machine has"):
        start(ServeConfig(index=(str(flat_index),), port=18433, gpus=99))


def test_indices_that_do_not_belong_together_are_refused(flat_index, text_index):
    with pytest.raises(ConfigError, match="two folders are"):
        start(ServeConfig(index=(f"a={flat_index}", f"a={flat_index}"), port=18431))


def test_another_model_is_refused_naming_both(url, flat_index, architecture, tmp_path):
    folder = tmp_path / "other"
    folder.mkdir()
    clip.save(clip.create(ModelSource(name=str(architecture)), seed=7), folder, {})
    with pytest.raises(MismatchError, match=r"other: its model is .+ \(.+ written with model \("):
        start(ServeConfig(index=(str(flat_index),), model=str(folder), port=18432))
