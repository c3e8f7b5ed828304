"""Two machines that share nothing but a network: all that works on one works over both.

Each has its address, hostname and disk; the commands are given on the first, as a user would. What
is trained, built and served over both is compared with what one machine makes of the same data.
"""

import json
import signal
import sys
import time

import pytest

from clipray.training.metrics import METRICS_FILE, read_metrics
from tests.drawing import write_shards
from tests.hosts import GCS_PORT, hosts, wait_for_nodes

LIMIT_S = 600
STEPS = 24

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def machines(tmp_path_factory, architecture):
    """A cluster of two, with the same pictures on the disk of each; and a machine besides."""
    pairs = write_shards(tmp_path_factory.mktemp("pairs") / "pairs", count=96, per_shard=16)
    with hosts("clipray-a", "clipray-b") as (a, b, other):
        for host in (a, b, other):
            host.take(pairs, "/tmp/data/pairs")
            host.take(architecture, "/tmp/data/tiny.json")
        a.start_ray(a)
        wait_for_nodes(a, 1)
        b.start_ray(a)
        wait_for_nodes(a, 2)
        yield a, b, other


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
    return ["train", "--input", "/tmp/data/pairs", "--model", "/tmp/data/tiny.json",
            "--workers", 2, "--output", output, *overrides]  # fmt: skip


def steps_of(host, output):
    lines = read_metrics(host.file(f"{output}-run") / METRICS_FILE)
    return [(line["step"], line["order"], line["loss"]) for line in lines if "loss" in line]


@pytest.fixture(scope="module")
def alone(machines):
    """What two ranks on one machine make of it."""
    *_, other = machines
    other.clipray(*training("/tmp/model"), timeout=LIMIT_S)
    return steps_of(other, "/tmp/model")


@pytest.fixture(scope="module")
def trained(machines):
    """The same over both machines, by a command on the first."""
    a, *_ = machines
    began = time.monotonic()
    a.clipray(*training("/tmp/model"), timeout=LIMIT_S)
    print(f"\ntrained over two machines in {time.monotonic() - began:.0f} s")
    return "/tmp/model"


def first_host(host, output):
    return json.loads((host.file(f"{output}-run") / "environment.json").read_text())["host"]


def test_both_train_what_one_does(machines, alone, trained):
    a, b, _ = machines
    assert steps_of(a, trained) == alone
    assert len(alone) == STEPS
    print(first_host(a, trained))
    assert not b.file("/tmp/model-run").exists()
