"""Two machines that share nothing but a network: all that works on one works over both.

Each has its address, hostname and disk. Training is commanded from a third that computes nothing,
all else from the first. What is trained, built and served over both is compared with what one
machine outside of the cluster makes of the same data.
"""

import json
import subprocess
import sys
import time
from contextlib import suppress
from signal import SIGINT, SIGKILL

import pytest

from clipray.index.manifest import IndexFolder
from clipray.lent import SIGN
from clipray.training.metrics import METRICS_FILE, read_metrics
from tests.drawing import write_shards
from tests.hosts import DISK, hosts

LIMIT_S = 600
STEPS = 24
MODEL = f"{DISK}/model"
GONE = ("--key", "pairs/000000003", "--key", "pairs/000030003")

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def machines(tmp_path_factory, architecture):
    """A cluster of two and of one that only gives commands, and a machine besides.

    Each has the same pictures on its disk.
    """
    pairs = write_shards(tmp_path_factory.mktemp("pairs") / "pairs", count=96, per_shard=16)
    more = write_shards(tmp_path_factory.mktemp("more") / "more", count=16)
    with hosts("clipray-a", "clipray-b", "clipray-desk") as (a, b, desk, other):
        for host in (a, b, desk, other):
            host.take(pairs, f"{DISK}/data/pairs")
            host.take(architecture, f"{DISK}/data/tiny.json")
        other.take(more, f"{DISK}/data/more")
        a.start_ray(a)
        b.start_ray(a)
        desk.start_ray(a, cpus=0)
        yield a, b, desk, other


@pytest.fixture
def say(capsys):
    """Print a figure though the test passes."""

    def show(text):
        with capsys.disabled():
            sys.stdout.write(f"\n  {text}")

    return show


def training(output, **options):
    """24 steps of 16; every node has two CPUs, so that each has one rank."""
    given = {
        "epochs": 4,
        "precision": "fp32",
        "cpus_per_worker": 2,
        "loader.batch_size": 16,
        "optim.lr": 3e-3,
        "augment.rotate": 20,
        "checkpoints.every_steps": 5,
        "log.every_steps": 1,
    } | options
    overrides = [word for key, value in given.items() for word in ("-o", f"{key}={value}")]
    return ["train", "--input", f"{DISK}/data/pairs", "--model", f"{DISK}/data/tiny.json",
            "--workers", 2, "--output", output, *overrides]  # fmt: skip


def steps_of(host, output):
    lines = read_metrics(host.file(f"{output}-run") / METRICS_FILE)
    return [(line["step"], line["order"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(machines):
    """What two ranks on one machine make of it."""
    *_, other = machines
    other.clipray(*training(f"{DISK}/model"), timeout=LIMIT_S)
    return steps_of(other, f"{DISK}/model")


@pytest.fixture(scope="module")
def trained(machines):
    """The same over both, by a command on a third, which is killed once on the way."""
    *_, desk, _ = machines
    with desk.begin(*training(MODEL), stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + LIMIT_S
        while len(checkpoints(desk)) < 2:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        desk.signal(SIGKILL)
    assert not desk.file(MODEL).exists()
    desk.clipray(*training(MODEL), timeout=LIMIT_S)
    return MODEL


def checkpoints(host):
    return list(host.file(f"{MODEL}-run/checkpoints").glob("step-*/checkpoint.json"))


def test_both_train_what_one_does(machines, alone, trained, say):
    """To the last digit: two ranks on gloo add in the same order, wherever they are."""
    a, b, desk, _ = machines
    assert steps_of(desk, trained) == alone
    assert len(alone) == STEPS
    told = json.loads(desk.file(f"{trained}-run/environment.json").read_text())
    say(f"{STEPS} steps over two machines, first rank on {told['host']}, command on {desk.name}")
    assert told["host"] in {a.name, b.name}
    assert not a.file(f"{trained}-run").exists()
    assert not b.file(f"{trained}-run").exists()
    assert not desk.file(f"{trained}-run/{SIGN}").exists()


def test_a_node_without_the_data_is_named(machines, trained):
    a, b, *_ = machines
    shard = b.file(f"{DISK}/data/pairs/00003.tar")
    shard.rename(shard.with_suffix(".away"))
    said = a.clipray(*training(f"{DISK}/other"), timeout=LIMIT_S, fails=True)
    shard.with_suffix(".away").rename(shard)
    assert f"{DISK}/data/pairs/00003.tar: not there (1 of 6 shards)" in said
    assert "[on node 'clipray-b']" in said


@pytest.fixture(scope="module")
def indices(machines, trained):
    """Embeddings of one machine, copied; an index on both machines, and the same on one alone."""
    a, b, desk, other = machines
    desk.send(MODEL, other)
    for name in ("pairs", "more"):
        embed = ["embed", "--input", f"{DISK}/data/{name}", "--output", f"{DISK}/emb/{name}"]
        other.clipray(*embed, "--model", MODEL, timeout=LIMIT_S)
    for host in (a, b):
        other.send(MODEL, host)
        other.send(f"{DISK}/emb", host)
    places = ["--embeddings", f"{DISK}/emb/pairs", "--index", f"{DISK}/idx"]
    build = ["index", "build", *places, "--method",
             "Flat", "--shards", 4, "--modality", "image"]  # fmt: skip
    remove = ["index", "remove", "--index", f"{DISK}/idx", *GONE]
    append = ["index", "append", "--index", f"{DISK}/idx", "--embeddings", f"{DISK}/emb/more"]
    other.clipray(*build, timeout=LIMIT_S)
    a.clipray(*build, "--placement", "node", timeout=LIMIT_S)
    for host in (a, other):
        host.clipray(*append, timeout=LIMIT_S)
        host.clipray(*remove, timeout=LIMIT_S)


def test_shards_stay_on_both_disks_and_change_there(machines, indices, say):
    a, b, _, other = machines
    newest, whole = (IndexFolder(host.file(f"{DISK}/idx")).read() for host in (a, other))
    homes = {shard.node for shard in newest.shards}
    assert homes == {a.name, b.name}
    assert (newest.version, newest.rows) == (whole.version, 110)
    for host in (a, b):
        there = {path.name for path in host.file(f"{DISK}/idx/segments").iterdir()}
        mine = [shard for shard in newest.shards if shard.node == host.name]
        assert {segment.id for shard in mine for segment in shard.segments} <= there
        assert sum(shard.rows for shard in mine) > 0
        say(f"{host.name}: {sum(shard.rows for shard in mine)} rows in {len(mine)} shards")
    assert not b.file(f"{DISK}/idx/manifests").exists()


def test_one_query_is_answered_from_both_disks(machines, indices):
    a, *_, other = machines
    for query in (["--text", "a large red circle"], ["--key", "pairs/000040003"]):
        found, expected = (search(host, *query, k=20) for host in (a, other))
        assert found == expected
        assert len(found) == 20


@pytest.fixture(scope="module")
def url(machines, indices):
    """Served by a command on the first machine."""
    a, *_ = machines
    serve = ["serve", "--index", f"{DISK}/idx", "--host", a.address, "--public", "--watch-s", 0]
    said, url = a.file(f"{DISK}/serve-said"), f"http://{a.address}:8000"

    def answers():
        assert process.poll() is None, said.read_text()[-4000:]
        return coverage(machines, url) == []

    with said.open("w") as stream, a.begin(*serve, stderr=stream) as process:
        wait_until(answers, LIMIT_S)
        yield url
        a.signal(SIGINT)
        process.wait()


def ask(machines, url, **query):
    """Ask from a third machine."""
    *_, other = machines
    asked = other.run("curl", "-sS", "-m", 30, url, "-H", "content-type: application/json", "-d",
                      json.dumps(query))  # fmt: skip
    return json.loads(asked)


def coverage(machines, url):
    with suppress(AssertionError, ValueError):
        reply = ask(machines, f"{url}/search", text="a red circle", k=1)
        return reply["coverage"]["missing"] if "coverage" in reply else None


def wait_until(true, patience_s):
    deadline = time.monotonic() + patience_s
    while not true():
        assert time.monotonic() < deadline
        time.sleep(1)


def test_a_third_machine_gets_the_answers_of_one_alone(machines, url):
    *_, other = machines
    for query in ({"text": "a large red circle"}, {"key": "pairs/000040003"}):
        reply = ask(machines, f"{url}/search", k=50, **query)
        assert not reply["degraded"]
        ((name, value),) = query.items()
        assert rows_of(reply["matches"]) == search(other, f"--{name}", value, k=50)


def test_a_machine_that_is_lost_is_told_and_comes_back(machines, url, say):
    a, b, *_ = machines
    records = IndexFolder(a.file(f"{DISK}/idx")).read().shards
    theirs = [number for number, shard in enumerate(records) if shard.node == b.name]
    b.crash()
    began = time.monotonic()
    assert coverage(machines, url) == theirs
    say(f"a reply without shards {theirs} after {time.monotonic() - began:.1f} s")
    b.start_ray(a)
    began = time.monotonic()
    wait_until(lambda: coverage(machines, url) == [], LIMIT_S)
    say(f"whole again {time.monotonic() - began:.0f} s after the machine was started")


def search(host, *query, k):
    asked = ["search", "--index", f"{DISK}/idx", "-k", k, "--json", *query]
    return rows_of(json.loads(host.clipray(*asked, stderr=subprocess.DEVNULL))["matches"])


def rows_of(matches):
    return [(match["key"], match["score"], match["caption"]) for match in matches]
