"""Nodes come when work needs them and leave when it is done; each test shows its time line."""

import shutil
import sys
import threading
from contextlib import contextmanager

import pytest
import yaml

from clipray.embeddings import EmbeddingsFolder
from clipray.index import Index
from tests.drawing import write_shards
from tests.elastic import IDLE_S, elastic, watched
from tests.handmade import build_index
from tests.heads import free_ports
from tests.serve.client import ask, wait_for

pytestmark = pytest.mark.soak

COMES_S = 60  # from the demand to the node; most of it is processes that start
LEAVES_S = IDLE_S + 30  # from the last work to the end of the node
SERVES_S = 120
SHARDS, PER_SHARD = 500, 40
CLIENTS = 8


@pytest.fixture(scope="module")
def cluster():
    with elastic() as cluster:
        yield cluster


@pytest.fixture
def line(cluster, request, capsys):
    """The time line of a test, from a cluster without nodes to one without nodes."""
    with watched(request.node.name, cluster) as line:
        try:
            line.until(lambda alive: not alive, LEAVES_S)
            yield line
            line.note("the work is over")
            line.until(lambda alive: not alive, LEAVES_S)
        finally:
            with capsys.disabled():
                sys.stdout.write("\n".join(line.notes) + "\n")


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Half a thousand shards, equal but for their names."""
    folder = tmp_path_factory.mktemp("many")
    write_shards(folder, PER_SHARD, PER_SHARD)
    for number in range(1, SHARDS):
        for suffix in (".tar", "_stats.json"):
            shutil.copy(folder / f"00000{suffix}", folder / f"{number:05d}{suffix}")
    return folder


def test_an_embedding_job_brings_nodes_as_its_backlog_needs_them(
    cluster, line, many, model, tmp_path
):
    said = cluster.clipray(
        "embed", "--input", many, "--model", model, "--output", tmp_path / "emb",
        "--device", "cpu", "--max-workers", 4,
    )  # fmt: skip
    assert "waiting for nodes: 1 × (CPU 1, GPU 0) asked for" in said
    assert line.came("cpu") < COMES_S
    assert line.most("cpu") >= 2
    assert line.most("gpu") == 0
    assert line.busiest >= 2
    assert len(list(EmbeddingsFolder(tmp_path / "emb").markers())) == SHARDS


def test_a_node_with_a_gpu_comes_for_an_actor_that_wants_one(
    cluster, line, shards, model, tmp_path
):
    said = cluster.clipray(
        "embed", "--input", shards, "--model", model, "--output", tmp_path / "emb",
        "--gpus-per-worker", 1,
    )  # fmt: skip
    assert "waiting for nodes: 1 × (CPU 1, GPU 1) asked for" in said
    assert line.came("gpu") < COMES_S
    assert line.most("gpu") == 1
    assert line.most("cpu") == 0


def test_a_build_brings_the_node_that_it_runs_on(cluster, line, embeddings, tmp_path):
    said = cluster.clipray(
        "index", "build", "--embeddings", embeddings, "--index", tmp_path / "idx", "--shards", 2
    )
    assert "waiting for nodes" in said
    assert line.came("cpu") < COMES_S
    assert Index.open(tmp_path / "idx").manifest.rows == 40


def test_training_waits_for_the_nodes_of_all_its_workers(
    cluster, line, shards, architecture, tmp_path
):
    said = cluster.clipray(
        "train", "--input", shards, "--model", architecture, "--output", tmp_path / "model",
        "--workers", 3, "--epochs", 1, "-o", "loader.batch_size=12", "-o", "log.tensorboard=false",
    )  # fmt: skip
    assert "waiting for nodes: 3 × (CPU 1, GPU 0) asked for" in said
    assert line.most("cpu") == 2
    assert (tmp_path / "model/clipray.json").is_file()


def test_load_on_a_service_brings_nodes_for_its_replicas(cluster, line, embeddings, tmp_path):
    build_index(tmp_path / "idx", embeddings, shards=2, modality="image")
    (port,) = free_ports(1)
    url, file = f"http://127.0.0.1:{port}", tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump(service(tmp_path / "idx", port)))
    cluster.serve("deploy", file)
    wait_for(lambda: answers(url), SERVES_S)
    assert line.most("cpu") == 1
    line.note("load begins")
    with flood(url):
        line.until(lambda alive: alive.get("cpu", 0) >= 2, COMES_S)
    line.note("the load is over")
    line.until(lambda alive: alive.get("cpu", 0) == 1, SERVES_S)
    assert answers(url)
    cluster.serve("shutdown", "--yes")


def service(index, port):
    """One node has room for all deployments, and for one replica of the ingress."""
    scaled = {
        "min_replicas": 1,
        "max_replicas": 4,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 2,
        "downscale_delay_s": 5,
        "look_back_period_s": 10,
    }
    application = {
        "name": "clipray",
        "import_path": "clipray.serve.app:build",
        "route_prefix": "/",
        "args": {"index": [f"drawings={index}"], "search": {"cpus": 1, "max_replicas": 4}},
        "runtime_env": {"env_vars": {"CLIPRAY_READ_KEYS": KEY}},
        "deployments": [{"name": "Search", "autoscaling_config": scaled}],
    }
    return {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }


KEY = "read-key-of-the-test"
QUERY = {"key": "shards/000000003", "k": 40}


def answers(url):
    try:
        return ask(f"{url}/search", QUERY, KEY)[0] == 200
    except (OSError, ValueError):
        return False


@contextmanager
def flood(url):
    """Clients that ask without a pause during the block."""
    over = threading.Event()

    def client():
        while not over.is_set():
            answers(url)

    clients = [threading.Thread(target=client) for _ in range(CLIENTS)]
    for one in clients:
        one.start()
    try:
        yield
    finally:
        over.set()
        for one in clients:
            one.join()
