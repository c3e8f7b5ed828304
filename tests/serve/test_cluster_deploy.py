"""The files of serve_configs on a head and worker nodes, which lose their power under load."""

import json
import threading
import time
import urllib.request
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import yaml

from clipray.index import Index
from clipray.index.reader import unit_queries
from clipray.index.shard import Wanted, search_shards
from tests.handmade import build_index, found
from tests.heads import free_ports, head
from tests.serve.client import answer, ask, wait_for

pytestmark = pytest.mark.soak

CONFIGS = Path(__file__).parents[2] / "serve_configs"
DIM, K, SHARDS = 32, 10, 4
VECTORS = np.random.default_rng(3).normal(size=(16, DIM)).astype(np.float32)
KEY = "read-key-of-the-test"
READY_S = 240
SMALL = {"cpus": 0.1, "upscale_delay_s": 2, "downscale_delay_s": 4}


def say(*told):
    print(*told)  # noqa: T201  a soak test shows its figures


@pytest.fixture(scope="module")
def index(embeddings, tmp_path_factory):
    """Images, Flat, four shards."""
    folder = tmp_path_factory.mktemp("spread") / "index"
    build_index(folder, embeddings, shards=SHARDS, modality="image")
    return folder


@pytest.fixture(scope="module")
def cluster():
    """A head without room for replicas."""
    with head(cpus=0) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def workers(cluster):
    """Two of them, by Ray's id; tests kill some and start others."""
    joined = [join(cluster) for _ in range(2)]
    return {worker.id: worker for worker in joined}


@pytest.fixture(scope="module")
def service(cluster, workers, index, tmp_path_factory):
    return Service(cluster, index, tmp_path_factory.mktemp("yaml"))


class Service:
    """An application on a cluster, by its address."""

    def __init__(self, cluster, index, folder):
        self.index = index
        self._cluster, self._folder = cluster, folder
        (self._port,) = free_ports(1)
        self._keys = folder / "read_keys"
        self._keys.write_text(KEY)
        self._keys.chmod(0o600)

    def deploy(self, name, **changes):
        """`serve deploy` of a file of ours, its places filled in and made small."""
        tree = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        tree["proxy_location"] = "HeadOnly"  # all nodes are one host
        tree["http_options"] = {"host": "127.0.0.1", "port": self._port}
        args = tree["applications"][0]["args"]
        args |= {"index": [f"drawings={self.index}"], "read_keys": str(self._keys)}
        for section in ("search", "encoder", "shards"):
            args[section] |= SMALL | changes.pop(section, {})
        file = self._folder / f"{name}.yaml"
        file.write_text(
            yaml.safe_dump(
                tree | {"applications": [tree["applications"][0] | {"args": args | changes}]}
            )
        )
        self._cluster.serve("deploy", file)
        wait_for(lambda: self.told()["status"] in ("RUNNING", "DEPLOY_FAILED"), READY_S)
        assert self.told()["status"] == "RUNNING", self.told()["message"]

    def told(self):
        """What Ray says of the application."""
        url = f"{self._cluster.dashboard}/api/serve/applications/"
        token = {"Authorization": f"Bearer {self._cluster.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(url, headers=token), timeout=20) as got:
            return json.load(got)["applications"].get("clipray", {"status": "none"})

    def homes(self):
        """Nodes of the running replicas, by deployment."""
        return {
            name: [one["node_id"] for one in deployment["replicas"] if one["state"] == "RUNNING"]
            for name, deployment in self.told()["deployments"].items()
        }

    def counts(self):
        return {name: len(nodes) for name, nodes in self.homes().items()}

    def ask(self, body):
        """When it was asked, and status and JSON of the answer; status 0 where there was none."""
        began = time.monotonic()
        try:
            return began, *ask(f"http://127.0.0.1:{self._port}/search", body, KEY)
        except (OSError, ValueError) as error:
            return began, 0, {"error": repr(error)}


@contextmanager
def asking(service, bodies, clients, pause_s=0.0):
    """Clients that ask one query after the other until the block ends; gives what they heard."""
    heard, done = [], threading.Event()

    def client(number):
        while not done.is_set():
            heard.append((number % len(bodies), *service.ask(bodies[number % len(bodies)])))
            number += clients
            time.sleep(pause_s)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield heard
    finally:
        done.set()
        for thread in threads:
            thread.join()


def queries():
    return [{"embedding": vector.tolist(), "k": K} for vector in VECTORS]


def truth(index, shards):
    """What each query finds in some shards."""
    opened = [Index.open(index)._shards[number] for number in shards]
    return [found(one) for one in search_shards(opened, unit_queries(VECTORS, DIM), Wanted(K))]


def wrong(index, heard):
    """Replies that are not exactly what the shards hold that they say they have searched."""
    expected, bad = {}, []
    for query, _, status, reply in heard:
        if status != 200:
            continue
        missing = tuple(reply["coverage"]["missing"])
        left = tuple(number for number in range(SHARDS) if number not in missing)
        if left not in expected:
            expected[left] = truth(index, left)
        ids, scores = expected[left][query]
        if answer(reply) != list(zip(ids, scores, strict=True)):
            bad.append(reply)
        if reply["degraded"] != bool(missing):
            bad.append(reply)
    return bad


def kept(heard, killed, test):
    """Seconds after the kill of the first and the last reply of a kind, and how many there are."""
    at = [began - killed for _, began, status, reply in heard if test(status, reply)]
    return f"{len(at)}" + (f" from {min(at):.1f} s to {max(at):.1f} s" if at else "")


def timeline(title, heard, killed, **events):
    statuses = Counter(status for _, _, status, _ in heard)
    say(f"\n{title}: {len(heard)} queries, {dict(statuses)}")
    say("  killed at 0.0 s")
    say("  not answered:", kept(heard, killed, lambda status, reply: status != 200))
    say("  flagged:", kept(heard, killed, lambda status, reply: reply.get("degraded")))
    for name, seconds in events.items():
        say(f"  {name}: {seconds - killed:.1f} s")


def test_replicas_come_with_the_load_and_go_without_it(service):
    few = {"replicas": 1, "max_replicas": 2, "target": 0.1}  # of calls that take milliseconds
    sections = {"search": few | {"target": 4}, "encoder": few, "shards": few}
    service.deploy("autoscaling", replicas=1, **sections)
    assert set(service.counts().values()) == {1}
    texts = [{"text": f"a red ring {number}", "k": K} for number in range(50_000)]  # none is cached
    began, seen = time.monotonic(), Counter()
    with asking(service, texts, clients=16) as heard:
        wait_for(lambda: seen.update(grown(service, began, seen)) or len(seen) == 4, 240)
    idle = time.monotonic()
    wait_for(lambda: set(service.counts().values()) == {1}, 180)
    say(f"\nload from 0.0 s on, {len(heard)} queries until {idle - began:.1f} s")
    say("  two replicas:", {name: f"{seconds:.1f} s" for name, seconds in seen.items()})
    say(f"  one of each again: {time.monotonic() - idle:.1f} s after its end")
    assert {status for _, _, status, _ in heard} == {200}
    assert not any(reply["degraded"] for *_, reply in heard)


def grown(service, began, seen):
    """Seconds until a deployment had two replicas, for those that had not before."""
    two = [name for name, count in service.counts().items() if count > 1 and name not in seen]
    return dict.fromkeys(two, time.monotonic() - began)


def test_what_goes_with_a_node_is_told_and_comes_back_on_another(service, workers, index):
    service.deploy("replicated", replicas=1)
    assert all(len(set(service.homes()[name])) == 2 for name in ("Search", "Encoder"))
    (lost,) = service.homes()["ShardGroup-0"]
    with asking(service, queries(), clients=4, pause_s=0.05) as heard:
        time.sleep(3)
        killed = time.monotonic()
        workers.pop(lost).kill()
        wait_for(lambda: back(service, lost, "ShardGroup-0", "ShardGroup-1"), 120)
        placed = time.monotonic()
        wait_for(lambda: whole_since(heard, placed), 60)
    timeline("a node with the only replica of a group", heard, killed, placed_on_the_other=placed)
    assert not wrong(index, heard)
    assert any(reply.get("degraded") for *_, reply in heard)
    assert not any(reply.get("degraded") for _, began, _, reply in heard if began < killed)
    assert last_bad(heard) < killed + 60


def test_nothing_is_missing_where_no_part_is_alone(service, workers, cluster, index):
    while len(workers) < 2:
        joined = join(cluster)
        workers[joined.id] = joined
    service.deploy("replicated")
    homes = service.homes()
    assert all(len(set(nodes)) == 2 for nodes in homes.values()), homes
    lost = homes["ShardGroup-0"][0]
    with asking(service, queries(), clients=4, pause_s=0.05) as heard:
        time.sleep(3)
        killed = time.monotonic()
        workers.pop(lost).kill()
        wait_for(lambda: not any(lost in nodes for nodes in service.homes().values()), 60)
        noticed = time.monotonic()
        time.sleep(5)
        third = join(cluster)
        came = time.monotonic()
        wait_for(lambda: all(third.id in nodes for nodes in service.homes().values()), 180)
        replaced = time.monotonic()
        time.sleep(5)
    events = {"noticed": noticed, "another_node": came, "all_replicas_again": replaced}
    timeline("a node with one replica of two of everything", heard, killed, **events)
    assert not wrong(index, heard)
    assert not any(reply.get("degraded") for *_, reply in heard)
    failed = [began for _, began, status, _ in heard if status != 200]
    assert len(failed) <= 8, failed  # on their way through the ingress that died
    assert last_bad(heard) < killed + 20


def join(cluster):
    """A node; tried thrice, for Ray gives its agent 15 s to start, which a busy machine needs."""
    for _ in range(2):
        with suppress(AssertionError):
            return cluster.join(cpus=2)
    return cluster.join(cpus=2)


def back(service, lost, *names):
    """Whether the groups have replicas, none of which is on the lost node."""
    homes = service.homes()
    return all(homes[name] and lost not in homes[name] for name in names)


def whole_since(heard, began):
    """Whether the latest replies, asked after a moment, are of all shards."""
    latest = [reply for _, asked, status, reply in heard if asked > began and status == 200]
    return len(latest) > 50 and not any(reply["degraded"] for reply in latest[-50:])


def last_bad(heard):
    """When the last query was asked that was not answered whole."""
    bad = [began for _, began, status, reply in heard if status != 200 or reply["degraded"]]
    return max(bad, default=0)
