"""kill -9 of trainers, of the command and of a node: the run goes on, and its losses are the same.

Batches and losses of a run that was cut off are compared with those of one that was not, digit by
digit.
"""

import os
import signal
import time
from pathlib import Path
from threading import Thread

import pytest

from clipray.manifest import ModelFolder
from clipray.train import TrainConfig, train
from clipray.training.augment import AugmentConfig
from clipray.training.checkpoints import CheckpointConfig
from clipray.training.loader import LoaderConfig
from clipray.training.logbook import LogConfig
from clipray.training.metrics import METRICS_FILE, read_metrics
from clipray.training.optim import OptimConfig
from tests.drawing import write_shards
from tests.processes import of_session, reap, start, start_silent
from tests.simulated import simulated

STEPS, EPOCH = 40, 10
LIMIT_S = 600

pytestmark = pytest.mark.soak


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("train") / "pairs", count=160, per_shard=40)


@pytest.fixture(scope="module")
def command(pairs, architecture):
    """40 steps of 16, ten an epoch, a checkpoint every seven: also in the middle of epochs."""
    given = {
        "epochs": STEPS // EPOCH,
        "precision": "fp32",
        "loader.batch_size": 16,
        "optim.lr": 3e-3,
        "augment.rotate": 20,
        "checkpoints.every_steps": 7,
        "log.every_steps": 1,
    }
    overrides = [word for key, value in given.items() for word in ("-o", f"{key}={value}")]
    base = ["train", "--input", pairs, "--model", architecture, "--workers", 2, *overrides]
    return lambda output: [*base, "--output", output]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    output = tmp_path_factory.mktemp("whole") / "model"
    with start_silent(command(output)) as process:
        assert process.wait(LIMIT_S) == 0
    return steps_of(output)


def steps_of(output):
    lines = read_metrics(Path(f"{output}-run") / METRICS_FILE)
    return [(line["step"], line["order"], line["loss"]) for line in lines if "loss" in line]


def wait_for_step(process, output, step):
    path, deadline = Path(f"{output}-run") / METRICS_FILE, time.monotonic() + LIMIT_S
    while not path.exists() or len(read_metrics(path)) < step:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def trainers(process):
    return [p.pid for p in of_session(process.pid) if "RayTrainWorker" in p.name]


@pytest.mark.parametrize("step", [12, 20, 21])
def test_the_command_and_all_that_it_started(command, whole, tmp_path, step):
    output = tmp_path / "model"
    with start_silent(command(output)) as process:
        wait_for_step(process, output, step)
        reap(process.pid)
    assert not output.exists()
    with start_silent(command(output)) as process:
        assert process.wait(LIMIT_S) == 0
    assert steps_of(output) == whole
    assert len(whole) == STEPS


def test_one_trainer(command, whole, tmp_path):
    output = tmp_path / "model"
    with start_silent(command(output)) as process:
        wait_for_step(process, output, 20)
        os.kill(trainers(process)[-1], signal.SIGKILL)
        assert process.wait(LIMIT_S) == 0
    assert steps_of(output) == whole


def test_the_newest_checkpoint_is_damaged(command, whole, tmp_path):
    output = tmp_path / "model"
    with start_silent(command(output)) as process:
        wait_for_step(process, output, 24)
        reap(process.pid)
    newest = max((Path(f"{output}-run") / "checkpoints").iterdir())
    state = newest / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    said = tmp_path / "said"
    with said.open("wb") as stream, start(command(output), stdout=stream, stderr=stream) as process:
        assert process.wait(LIMIT_S) == 0
    assert f"{newest} is damaged" in said.read_text()
    assert steps_of(output) == whole


def begin(machines, tree):
    """Train beside the driver's other work."""
    machines.ended = []
    config = TrainConfig.model_validate(tree)
    machines.thread = Thread(target=lambda: machines.ended.append(train(config)), daemon=True)
    machines.thread.start()


def ended(machines):
    return bool(machines.ended), machines.thread.is_alive()


def lose(machines, name):
    machines.kill(name)
    machines.start(name)


def test_a_node(pairs, architecture, whole, tmp_path):
    """Two workers on two nodes that share a folder; one node goes, and later another comes."""
    output = tmp_path / "model"
    tree = TrainConfig(
        input=(str(pairs),),
        output=output,
        model=str(architecture),
        epochs=STEPS // EPOCH,
        workers=2,
        precision="fp32",
        loader=LoaderConfig(batch_size=16),
        optim=OptimConfig(lr=3e-3),
        augment=AugmentConfig(rotate=20),
        checkpoints=CheckpointConfig(every_steps=7),
        log=LogConfig(every_steps=1),
    ).model_dump()
    with simulated(tmp_path, names="hab") as driver:
        driver.run(begin, tree)
        path = Path(f"{output}-run") / METRICS_FILE
        deadline = time.monotonic() + LIMIT_S
        while not path.exists() or len(read_metrics(path)) < 20:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        driver.run(lose, "a")
        while (state := driver.run(ended)) == (False, True):
            assert time.monotonic() < deadline
            time.sleep(1)
    assert state[0]
    assert ModelFolder(output).weights.is_file()
    assert steps_of(output) == whole
