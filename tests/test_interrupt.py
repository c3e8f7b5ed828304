"""Ctrl-C during a verb, or SIGTERM: no Ray process stays, and no half folder passes for whole."""

import os
import signal
import subprocess
import time

import pytest

from clipray.embeddings import EmbeddingsFolder
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from tests.drawing import write_folder
from tests.processes import of_session, reap, start

START_S = 240  # until Ray stands, on a busy machine


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """More drawings than are embedded in a second."""
    root = tmp_path_factory.mktemp("many")
    few = write_folder(root / "few")
    for number in range(4_000):
        source = few / ("odd" if number % 2 else "even") / f"{number % 40:04d}.png"
        os.link(source, root / f"{number:05d}.png")
        os.link(source.with_suffix(".txt"), root / f"{number:05d}.txt")
    return root


def interrupted(arguments, sign, pause=0.0, number=signal.SIGINT):
    """Start a command, send its group a signal once `sign` stands in stderr, wait for its end."""
    with start(arguments, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            code, said = _interrupt(process, sign.encode(), pause, number)
        except BaseException:
            reap(process.pid)  # or leaving the block would wait for it for ever
            raise
    return code, said.decode(), process.pid


def _interrupt(process, sign, pause, number):
    os.set_blocking(process.stderr.fileno(), False)
    said, began = b"", time.monotonic()
    while sign not in said and process.poll() is None:
        assert time.monotonic() - began < START_S, said[-2000:]
        said += process.stderr.read() or b""
        time.sleep(0.05)
    assert process.poll() is None, said[-2000:]
    time.sleep(pause)
    os.killpg(process.pid, number)
    code = process.wait(timeout=60)
    return code, said + (process.stderr.read() or b"")


def require_quiet(session):
    deadline = time.monotonic() + 40  # Ray's agents take their time on a busy machine
    while (left := of_session(session)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_train(many, architecture, tmp_path, number):
    command = ("train", "--input", many, "--output", tmp_path / "model", "--model", architecture)
    code, said, session = interrupted([*command, "--epochs", 500], "samples/s", number=number)
    assert (code, "Traceback" in said) == (130, False), said[-2000:]
    assert "writing a checkpoint" in said
    require_quiet(session)
    assert [path.name for path in tmp_path.iterdir()] == ["model-run"]
    (checkpoint,) = (tmp_path / "model-run" / "checkpoints").iterdir()
    assert f"stopped after step {int(checkpoint.name[-8:])}" in said


def test_embed(many, model, tmp_path):
    command = ("embed", "--input", many, "--output", tmp_path / "e", "--model", model)
    # Python loses an interrupt that comes inside an import, and Ray Data imports as it begins.
    code, said, session = interrupted(command, "embed:", pause=1.0)
    assert (code, "Traceback" in said) == (130, False), said[-2000:]
    require_quiet(session)
    folder = EmbeddingsFolder(tmp_path / "e")
    for part in folder.parts():
        assert folder.vectors(part, "image").is_file()
    assert len(folder.parts()) < 4


def test_index_build(embeddings, tmp_path):
    command = ("index", "build", "--embeddings", embeddings, "--index", tmp_path / "i")
    code, said, session = interrupted(command, "index:")
    assert (code, "Traceback" in said) == (130, False), said[-2000:]
    require_quiet(session)
    if IndexFolder(tmp_path / "i").versions():  # it came after the commit
        assert len(Index.open(tmp_path / "i")) == 40


def test_serve(flat_index):
    code, said, session = interrupted(("serve", "--index", flat_index, "--port", 18433), "serving")
    assert (code, "Traceback" in said) == (0, False), said[-2000:]
    require_quiet(session)
