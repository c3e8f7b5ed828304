"""What changing and opening an index of real size costs."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.index.appending import append_parts
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder
from clipray.index.workers import Here
from tests.handmade import unit, write_embeddings

pytestmark = pytest.mark.soak

DIM, PART = 512, 10_000

OPEN = """
import json, sys, time
from pathlib import Path
import numpy as np
from clipray.index import Index
def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024
before, began = anonymous(), time.perf_counter()
index = Index.open(sys.argv[1], verify=False)
opened = time.perf_counter() - began
began = time.perf_counter()
found = index.search(np.ones((1, 512), np.float32), k=10, columns=["caption"])
first = time.perf_counter() - began
grown = anonymous() - before
began = time.perf_counter()
Index.open(sys.argv[1])
checked = time.perf_counter() - began
print(json.dumps([len(index), len(found[0]), opened, first, grown, checked]))
"""


BUILD = """
import sys
from pathlib import Path
from tests.index.test_scale import build
build(Path(sys.argv[1]), Path(sys.argv[2]), "Flat")
"""


def embed(root, rows):
    """Clustered vectors, in parts as an embedding job writes them."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(1000, DIM)).astype(np.float32)
    parts, captions = [], {}
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        noise = rng.normal(size=(count, DIM)).astype(np.float32)
        near = centres[rng.integers(1000, size=count)] + noise
        keys = [f"s/{n}" for n in range(start, start + count)]
        captions[len(parts)] = {"caption": [f"caption of {key}" for key in keys]}
        parts.append((keys, unit(near).astype(np.float16)))
    return write_embeddings(root, parts, captions)


def build(embeddings, index, method):
    folder = IndexFolder(index)
    options = IndexOptions(method=method)
    made = construct(Parts.open(embeddings), folder, options, Here(index))
    assert folder.commit(made.manifest)
    return folder


@pytest.mark.parametrize("method", ["Flat", "auto", "HNSW32"])
def test_appending_a_hundredth_costs_little(tmp_path, method, record_property):
    embed(tmp_path / "emb", 100_000)
    began = time.process_time()
    folder = build(tmp_path / "emb", tmp_path / "index", method)
    rebuilt = time.process_time() - began
    more = embed(tmp_path / "more", 1_000)
    began = time.process_time()
    done = append_parts(folder, Parts.open(more), Here(folder.root))
    appended = time.process_time() - began
    assert (done.rows, done.replaced) == (1_000, 1_000)
    record_property("share", appended / rebuilt)
    print(f"{method}: {appended:.3f} of {rebuilt:.1f} CPU s, {appended / rebuilt:.2%}")  # noqa: T201
    assert appended < 0.05 * rebuilt


def most_memory(code, *arguments):
    """MB that a process held at most."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    code += "print(Path('/proc/self/status').read_text().partition('VmHWM:')[2].split()[0])"
    line = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1]) / 1024


def test_building_holds_one_part_at_a_time(tmp_path):
    few, many = embed(tmp_path / "few", 50_000), embed(tmp_path / "many", 500_000)
    held = [most_memory(BUILD, root, tmp_path / root.name / "i") for root in (few, many)]
    print(f"built 50,000 and 500,000 rows with {held[0]:.0f} and {held[1]:.0f} MB")  # noqa: T201
    assert held[1] - held[0] < 100  # the vectors alone are 461 MB more


@pytest.mark.parametrize("method", ["Flat", "auto"])
def test_a_million_rows_open_in_less_than_a_second(tmp_path, method):
    index = build(embed(tmp_path / "emb", 1_000_000), tmp_path / "index", method).root
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    line = [sys.executable, "-c", OPEN, index]
    said = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    rows, matches, opened, first, grown, checked = json.loads(said)
    print(  # noqa: T201
        f"{method}: opened in {opened:.3f} s, first search {first:.3f} s, {grown:.0f} MB of its "
        f"own; with all checksums {checked:.2f} s"
    )
    assert (rows, matches) == (1_000_000, 10)
    assert opened < 1
    assert grown < 200
