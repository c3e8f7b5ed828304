"""An index whose shards stay on the nodes that built them, served from there."""

import logging
import socket
import time
from contextlib import suppress
from threading import Thread

import pytest
from ray import serve

from clipray.embeddings import EmbeddingsFolder, EmbeddingsManifest, Parts
from clipray.errors import ConfigError
from clipray.index import Index
from clipray.index.append import IndexAppendConfig, append
from clipray.index.appending import append_parts
from clipray.index.build import IndexBuildConfig, build
from clipray.index.manifest import IndexFolder
from clipray.index.workers import Here
from clipray.manifest import read_json, write_json
from clipray.serve import local
from clipray.serve.app import APP_NAME
from clipray.serve.local import ServeConfig, start
from tests.handmade import build_index, random_halves, write_embeddings
from tests.heads import free_ports
from tests.serve.client import answer, ask, wait_for
from tests.simulated import simulated

pytestmark = pytest.mark.soak

NAMES = ("a", "rack-2.b_x", "C")  # the driver runs on the first
AWAY = "C"
K = 50
QUERIES = random_halves(3, 32, seed=1).astype("float32")


@pytest.fixture(scope="module")
def root(tmp_path_factory, embeddings):
    """The index in one folder as well, and two rows more for both, of which one is known."""
    root = tmp_path_factory.mktemp("held")
    build_index(root / "whole", embeddings, modality="image")
    rows = (["shards/000000003", "new/0"], random_halves(2, 32, seed=2))
    more = EmbeddingsFolder(write_embeddings(root / "more", [rows]))
    same = read_json(EmbeddingsManifest, EmbeddingsFolder(embeddings).manifest)
    settings = read_json(EmbeddingsManifest, more.manifest).settings
    write_json(more.manifest, same.model_copy(update={"settings": settings, "shards": ()}))
    return root


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with simulated(tmp_path_factory.mktemp("disks"), names=NAMES, cpus=2) as driver:
        yield driver


@pytest.fixture(scope="module")
def url(driver, root, embeddings):
    (port,) = free_ports(1)
    return driver.run(build_and_serve, embeddings, root / "held", port, timeout=300)


# In the process that drives the cluster.


def build_and_serve(machines, embeddings, index, port):
    build(
        IndexBuildConfig(
            embeddings=embeddings,
            index=index,
            shards=6,
            placement="node",
            method="Flat",
            modality="image",
        )
    )
    return start(config(index, port))


def config(index, port):
    return ServeConfig(index=(str(index),), port=port, watch_s=0, line={"deadline_s": 3})


def add(machines, root):
    append(IndexAppendConfig(embeddings=root / "more", index=root / "held"))


def lose(machines, name):
    machines.kill(name)


def restore(machines, name):
    machines.start(name)


def serve_without(machines, name, index, port):
    """Start the service anew while a node is away; returns what it says, and who is refused."""
    said = []
    machines.kill(name)
    serve.delete(APP_NAME)
    local.PATIENCE_S = 5.0
    local.log.addHandler(handler := logging.Handler())
    handler.emit = lambda record: said.append(record.getMessage())
    Thread(target=start, args=(config(index, port),), daemon=True).start()
    wait_for(lambda: f"ShardGroup-{name}" in " ".join(said) and answers(port), 100)
    (other,) = free_ports(1)
    try:
        start(config(index, other))
    except ConfigError as error:
        return said, str(error)
    return said, None


def answers(port):
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True


# In the test.


def shards_of(root, node):
    records = IndexFolder(root / "held").read().shards
    return [number for number, shard in enumerate(records) if shard.node == node]


def coverage(url):
    status, reply = ask(f"{url}/search", {"embedding": QUERIES[0].tolist(), "k": 1})
    return reply["coverage"] if status == 200 else {"missing": None}


def check(url, root):
    """The service answers as the folder does."""
    whole = Index.open(root / "whole")
    for query, found in zip(QUERIES, whole.search(QUERIES, K), strict=True):
        status, reply = ask(f"{url}/search", {"embedding": query.tolist(), "k": K})
        assert status == 200
        assert answer(reply) == [(match.id, match.score) for match in found]
        assert not reply["degraded"]
        assert reply["version"] == whole.manifest.version


def test_shards_answer_from_their_nodes_as_from_one_folder(url, root):
    homes = {shard.node for shard in IndexFolder(root / "held").read().shards}
    assert homes == set(NAMES)
    check(url, root)
    (served,) = ask(f"{url}/indices")[1]["indices"]
    assert "caption" in served["modalities"]["image"]["columns"]  # as the groups have told


def test_a_new_version_goes_live_on_all_nodes(url, root, driver):
    driver.run(add, root, timeout=120)
    parts = Parts.open(root / "more", None)
    append_parts(IndexFolder(root / "whole"), parts, Here(root / "whole"))
    assert coverage(url)["rows_total"] == 40
    status, told = ask(f"{url}/admin/refresh", {})
    assert (status, told["versions"]) == (200, {"held/image": 2})
    assert coverage(url)["rows_total"] == 41
    check(url, root)


def test_without_a_node_the_reply_says_what_is_missing_until_it_is_back(url, root, driver):
    missing = shards_of(root, AWAY)
    driver.run(lose, AWAY)
    began = time.monotonic()
    assert coverage(url)["missing"] == missing
    assert time.monotonic() - began < 5
    strict = {"embedding": QUERIES[0].tolist(), "allow_partial": False}
    status, told = ask(f"{url}/search", strict)
    assert (status, told["error"]["type"]) == (503, "UnavailableError")
    driver.run(restore, AWAY)
    wait_for(lambda: coverage(url)["missing"] == [], 60)
    check(url, root)


def test_a_service_that_starts_without_a_node_says_what_it_waits_for(url, root, driver):
    port = int(url.rpartition(":")[2])
    said, refused = driver.run(serve_without, AWAY, root / "held", port, timeout=200)
    assert any(f"still waiting for ShardGroup-{AWAY}" in line for line in said)
    assert "is served on this cluster already" in refused
    assert coverage(url)["missing"] == shards_of(root, AWAY)
    driver.run(restore, AWAY)
    wait_for(lambda: coverage(url)["missing"] == [], 60)
    check(url, root)
