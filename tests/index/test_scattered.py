"""An index whose shards lie on two disks answers as the whole one does."""

import shutil

import numpy as np
import pytest

from clipray.errors import DamagedError, NotFoundError, QueryError
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.index.scattered import ScatteredIndex
from clipray.index.workers import Done
from tests.handmade import build_index, random_halves

QUERIES = random_halves(3, 32, seed=1).astype(np.float32)


class OnDisks:
    """Workers on nodes, each with a disk of its own."""

    def __init__(self, disks):
        self._disks = disks

    def run(self, function, calls, on=None):
        for number, (call, node) in reversed(list(enumerate(zip(calls, on, strict=True)))):
            yield Done(number, function(self._disks / node, *call), node)


@pytest.fixture
def disks(tmp_path):
    return tmp_path / "disks"


@pytest.fixture
def whole(tmp_path, embeddings):
    build_index(tmp_path / "whole", embeddings, modality="image", shards=4)
    return Index.open(tmp_path / "whole")


@pytest.fixture
def scattered(tmp_path, whole, disks):
    """Its shards dealt out to two nodes."""
    folder, shards = IndexFolder(tmp_path / "whole"), []
    for number, shard in enumerate(whole.manifest.shards):
        node = "ab"[number % 2]
        shards.append(shard.model_copy(update={"node": node}))
        for segment in shard.segments:
            there = IndexFolder(disks / node).segment(segment.id)
            shutil.copytree(folder.segment(segment.id), there)
    manifest = whole.manifest.model_copy(update={"shards": tuple(shards), "placement": "node"})
    return ScatteredIndex(manifest, OnDisks(disks))


def test_searches_are_those_of_the_whole(whole, scattered):
    assert scattered.search(QUERIES, 7) == whole.search(QUERIES, 7)
    how = (0.0, {"width": {"$gte": 1}}, ("caption",))
    found = scattered.search(QUERIES, 40, *how, vectors=True)
    expected = whole.search(QUERIES, 40, *how, vectors=True)
    assert found == expected
    assert found[0].items[0].vector.tolist() == expected[0].items[0].vector.tolist()


def test_keys_are_found_on_either_disk(whole, scattered):
    for key in list(whole.column("caption"))[:10]:
        assert scattered.find(key).tolist() == whole.find(key).tolist()
    with pytest.raises(NotFoundError, match="nobody"):
        scattered.find("nobody")


def test_what_is_wrong_is_told(scattered, disks):
    with pytest.raises(QueryError, match="holds 32 dimensions"):
        scattered.search(QUERIES[:, :5], 7)
    shutil.rmtree(disks / "b")
    with pytest.raises(DamagedError, match="missing"):
        scattered.search(QUERIES, 7)
