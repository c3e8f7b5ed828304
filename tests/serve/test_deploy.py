"""The service behind Ray's proxies, deployed from a YAML file to a cluster that runs already."""

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from clipray.index import Index
from clipray.query import Query
from clipray.search import find
from tests.handmade import build_index
from tests.heads import free_ports, head
from tests.serve.client import answer, ask, wait_for

pytestmark = pytest.mark.soak

KEY = "read-key-of-the-test"
READY_S = 120
STOP_S = 12.0  # that replaced replicas take, and a little
TEXTS = ("a small red ring", "a large yellow cross")
ASKED = {"text": TEXTS[0], "k": 40}


@pytest.fixture(scope="module")
def index(embeddings, tmp_path_factory):
    """Images, Flat, three shards."""
    folder = tmp_path_factory.mktemp("deployed") / "index"
    build_index(folder, embeddings, shards=3, modality="image")
    return folder


@pytest.fixture(scope="module", params=["proxy", "haproxy"])
def cluster(request):
    with head(haproxy=request.param == "haproxy") as cluster:
        yield cluster


class Service:
    """An application on a cluster, by its address."""

    def __init__(self, cluster, folder, port):
        self._cluster, self._file, self._port = cluster, folder / "serve.yaml", port
        self.url = f"http://127.0.0.1:{port}"

    def deploy(self, **args):
        """Have Ray deploy it with these arguments; returns its status when that is done."""
        application = {
            "name": "clipray",
            "import_path": "clipray.serve.app:build",
            "route_prefix": "/",
            "args": args,
            "runtime_env": {"env_vars": {"CLIPRAY_READ_KEYS": KEY}},
        }
        tree = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": "127.0.0.1", "port": self._port},
            "applications": [application],
        }
        self._file.write_text(yaml.safe_dump(tree))
        self._cluster.serve("deploy", self._file)
        return self.status()

    def status(self):
        """What Ray says of it, once it has come to an end with it."""

        def ended():
            told = yaml.safe_load(self._cluster.serve("status"))["applications"].get("clipray", {})
            return told if told.get("status") in ("RUNNING", "DEPLOY_FAILED") else None

        return wait_for(ended, READY_S)

    def ask(self, path, body=None, key=KEY):
        """Status and JSON of a request."""
        return ask(self.url + path, body, key)


@pytest.fixture(scope="module")
def service(cluster, index, tmp_path_factory):
    (port,) = free_ports(1)
    service = Service(cluster, tmp_path_factory.mktemp("yaml"), port)
    status = service.deploy(**arguments(index))
    assert status["status"] == "RUNNING", status
    return service


def arguments(index):
    return {
        "index": [f"drawings={index}"],
        "groups": 2,
        "search": {"replicas": 2, "cpus": 0.1},
        "encoder": {"max_replicas": 2, "target": 4, "cpus": 0.1},
        "shards": {"cpus": 0.1},
        "line": {"deadline_s": 4},
        "max_body_bytes": 10_000,
        "access_log": True,
    }


def test_the_proxy_of_ray_gives_what_the_index_gives(service, index, encoder):
    for text in TEXTS:
        status, reply = service.ask("/search", {"text": text, "k": 10})
        assert status == 200
        local = find(Index.open(index), encoder, Query(text=text, k=10))
        assert answer(reply) == [(match.id, match.score) for match in local]
        assert reply["coverage"]["shards_ok"] == 3


def test_only_who_has_a_key_is_let_in(service):
    assert service.ask("/search", {"text": "a"}, key=None)[0] == 401
    assert service.ask("/search", {"text": "a"}, key="x" * 20)[0] == 401
    assert service.ask("/healthz", key=None)[0] == 200
    status, told = service.ask("/admin/refresh", {})
    assert status == 403
    assert "no admin key is configured" in told["error"]["message"]


def test_limits_hold_behind_the_proxy(service):
    status, told = service.ask("/search", {"text": "a" * 11_000})
    assert (status, told["error"]["type"]) == (413, "QueryError")


def test_numbers_reach_prometheus_through_ray(service, cluster):
    asked = [service.ask("/search", {"text": text})[0] for text in TEXTS]
    wanted = {"clipray_replies_total", "clipray_index_version", "clipray_stage_seconds_sum_total"}
    assert asked == [200, 200]
    wait_for(lambda: wanted <= shown(cluster), 30)


def shown(cluster):
    """Names of the series that carry the ingress deployment."""
    with urllib.request.urlopen(cluster.metrics, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        samples = [sample for family in families for sample in family.samples]
    tags = {"application": "clipray", "deployment": "Search"}
    ours = [sample for sample in samples if tags.items() <= sample.labels.items()]
    return {sample.name.removeprefix("ray_") for sample in ours}


def test_requests_are_logged_and_so_is_what_replicas_warn_of(service, cluster):
    service.ask("/images/drawings/4711")
    said = "".join(path.read_text() for path in cluster.logs.glob("worker-*.err"))
    line = next(line for line in said.splitlines() if "/images/drawings/4711" in line)
    assert json.loads(line)["status"] == 404


def replies_during(service, args):
    """What is answered from the beginning of a deployment until the last old replica has gone."""
    replies, done = [], Event()

    def keep_asking():
        while not done.is_set():
            replies.append(service.ask("/search", ASKED))
            time.sleep(0.02)

    with ThreadPoolExecutor(3) as pool:
        asking = [pool.submit(keep_asking) for _ in range(3)]
        try:
            assert service.deploy(**args)["status"] == "RUNNING"
            time.sleep(STOP_S)
        finally:
            done.set()
        for one in asking:
            one.result()
    return replies


@pytest.mark.parametrize(
    ("change", "most_partial"),
    [({"line": {"deadline_s": 5}}, 0.001), ({"groups": 3}, 0.2)],
    ids=["options", "other groups"],
)
def test_nothing_fails_while_it_is_deployed_anew(service, index, change, most_partial):
    """Where other shards are dealt out to a group, those that it has no more are told."""
    before = answer(service.ask("/search", ASKED)[1])
    replies = replies_during(service, arguments(index) | change)
    assert {status for status, _ in replies} == {200}
    whole = [reply for _, reply in replies if not reply["degraded"]]
    assert all(answer(reply) == before for reply in whole)
    assert len(replies) - len(whole) <= most_partial * len(replies)


def test_a_misspelt_argument_is_told_and_the_service_stays(service, index):
    status = service.deploy(**arguments(index), line_deadline=3)
    assert status["status"] == "DEPLOY_FAILED"
    assert "line_deadline\n  Extra inputs are not permitted" in status["message"]
    assert service.ask("/search", {"text": "a ring"})[0] == 200
