"""`clipray serve` over an index that a web server gives, and over a model that is another one."""

import functools
import http.server
import os
import shutil
import signal
import subprocess
import threading
import time
from collections import Counter
from contextlib import contextmanager

import pytest

from clipray.embeddings import Parts
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.manifest import IndexFolder
from clipray.index.workers import Here
from clipray.manifest import ModelFolder
from tests.handmade import build_index
from tests.heads import free_ports
from tests.processes import reap, start
from tests.serve.client import answer, ask, wait_for

pytestmark = pytest.mark.soak

QUERY = {"text": "a small red ring", "k": 40}
READY_S = 120


@pytest.fixture(scope="module")
def index(tmp_path_factory, embeddings):
    """Images, Flat, four shards."""
    folder = tmp_path_factory.mktemp("published") / "index"
    build_index(folder, embeddings, shards=4, modality="image")
    return folder


@contextmanager
def command(*arguments, **environment):
    """`clipray serve`, until the block ends."""
    options = {"env": os.environ | environment, "stderr": subprocess.PIPE, "text": True}
    process = start(["serve", *arguments], **options)
    try:
        yield process
        process.send_signal(signal.SIGINT)
        process.wait(60)
    finally:
        reap(process.pid)
        process.wait()


@contextmanager
def web_server(folder):
    """Its address, and how often each file was given."""
    given = Counter()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            given[self.path.removeprefix("/")] += 1
            super().do_GET()

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", given
        server.shutdown()


def ready(url):
    try:
        return ask(f"{url}/readyz")[0] == 200
    except OSError:
        return False


def files(folder):
    manifest = folder.read()
    segments = [folder.files(segment) for segment in manifest.segments]
    return {str(path.relative_to(folder.root)) for files in segments for path, _ in files}


def served_version(url):
    status, reply = ask(f"{url}/search", QUERY)
    assert status == 200
    return reply["version"]


def test_a_published_index_is_served_and_so_is_its_next_version(index, embeddings, tmp_path):
    (port,) = free_ports(1)
    url = f"http://127.0.0.1:{port}"
    folder = IndexFolder(index)
    options = ("--port", port, "--groups", 2, "--watch-s", 1)
    with web_server(index) as (address, given):
        arguments = ("--index", f"there={address}/", *options)
        with command(*arguments, CLIPRAY_CACHE=str(tmp_path / "cache")) as process:
            wait_for(lambda: process.poll() is not None or ready(url), READY_S)
            assert ready(url), process.stderr.read()
            before = answer(ask(f"{url}/search", QUERY)[1])
            assert len(before) == Index.open(index).coverage.rows_total == 40
            first = files(folder)
            assert {name: given[name] for name in first} == dict.fromkeys(first, 1)

            append_parts(folder, Parts.open(embeddings, "image"), Here(index))
            wait_for(lambda: served_version(url) == 2, 20)
            assert answer(ask(f"{url}/search", QUERY)[1]) == before  # the same rows came again
            assert all(given[name] == 1 for name in first)
            assert all(given[name] == 1 for name in files(folder))
        assert process.returncode == 0


def test_weights_that_are_not_those_of_the_index_end_the_start_soon(index, model, tmp_path):
    """Where the folder does not say what it holds, only a replica can find out."""
    other = tmp_path / "other"
    shutil.copytree(model, other)
    weights = bytearray(ModelFolder(other).weights.read_bytes())
    weights[-1] ^= 1
    ModelFolder(other).weights.write_bytes(bytes(weights))
    ModelFolder(other).manifest.unlink()
    (port,) = free_ports(1)
    began = time.monotonic()
    with command("--index", index, "--model", other, "--port", port) as process:
        _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the model of the service is other (" in said
    assert time.monotonic() - began < 90
