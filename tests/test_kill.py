"""kill -9 of encoder actors and of the driver: run again until finished, the output is whole."""

import os
import random
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipray.embeddings import EmbeddingsFolder
from tests.drawing import write_shards
from tests.processes import of_session, reap, start_silent

SHARDS = 40
KILLS = 20
LIMIT_S = 900


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return write_shards(tmp_path_factory.mktemp("kill") / "many", count=SHARDS * 60, per_shard=60)


@pytest.mark.soak
def test_twenty_kills_change_nothing(many, model, tmp_path):
    command = ("embed", "--input", many, "--model", model, "--workers", "2", "--output")
    with start_silent([*command, tmp_path / "whole"]) as untouched:
        assert untouched.wait(LIMIT_S) == 0
    rng, deadline, kills = random.Random(0), time.monotonic() + LIMIT_S, 0
    finished = False
    while not finished:
        assert time.monotonic() < deadline
        with start_silent([*command, tmp_path / "killed"]) as process:
            kills += _harass(process, rng) if kills < KILLS else 0
            finished = process.wait(LIMIT_S) == 0
            reap(process.pid)
    assert kills >= KILLS
    whole, killed = _rows(tmp_path / "whole"), _rows(tmp_path / "killed")
    assert killed.keys() == whole.keys()
    assert len(killed) == SHARDS * 60
    assert min(_cosine(whole[key], killed[key]) for key in whole) >= 0.9999


def _cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _harass(process, rng):
    """Kill actors of a run at random moments, and in the end its driver; how many were killed."""
    kills = 0
    for _ in range(3):
        time.sleep(rng.uniform(0.5, 4))
        actors = [p.pid for p in of_session(process.pid) if "MapWorker" in p.name]
        if process.poll() is not None:
            return kills
        if actors and rng.random() < 0.7:
            os.kill(rng.choice(actors), signal.SIGKILL)
            kills += 1
    if process.poll() is None:
        process.kill()
        kills += 1
    return kills


def _rows(root):
    """Vector by key, over the finished parts."""
    folder, rows = EmbeddingsFolder(root), {}
    for part in folder.parts():
        keys = pq.read_table(folder.metadata(part))["image_path"].to_pylist()
        vectors = np.load(folder.vectors(part, "image")).astype(np.float32)
        assert len(keys) == len(vectors)
        assert not rows.keys() & set(keys)
        rows |= dict(zip(keys, vectors, strict=True))
    return rows
