"""An index built on three nodes: shards on all of them, kept there, and whole when one is lost."""

import time
from threading import Thread

import numpy as np
import pytest

from clipray.errors import UnavailableError
from clipray.index import Index
from clipray.index.append import IndexAppendConfig, append
from clipray.index.build import IndexBuildConfig, build
from clipray.index.compact import IndexCompactConfig, compact
from clipray.index.history import IndexGcConfig, gc
from clipray.index.inspection import IndexVerifyConfig, verify
from clipray.index.manifest import IndexFolder
from clipray.index.remove import IndexRemoveConfig, remove
from clipray.index.shard import Shard
from tests.handmade import random_halves, write_embeddings
from tests.simulated import simulated

DIM, PARTS, ROWS = 16, 6, 50


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("cluster")
    parts = [(_keys(n), random_halves(ROWS, DIM, n)) for n in range(PARTS)]
    write_embeddings(root / "emb", parts)
    write_embeddings(root / "more", [(["p1/0", "new/0"], random_halves(2, DIM, 99))])
    return root


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def driver(disks):
    with simulated(disks, names="abc", cpus=1) as driver:
        yield driver


def _keys(part):
    return [f"p{part}/{row}" for row in range(ROWS)]


def build_it(machines, root, name, placement, shards=6, killing=None):
    """Build on the cluster; `killing` is a node that is lost when the first shard is done."""
    index = root / name
    if killing:
        done = Thread(target=_kill_when_begun, args=(machines, killing, index, placement))
        done.start()
    config = IndexBuildConfig(
        embeddings=root / "emb", index=index, shards=shards, placement=placement, method="IVF"
    )
    report = build(config)
    if killing:
        done.join()
        machines.start(killing)
    return report.rows, [shard.node for shard in IndexFolder(index).read().shards]


def _kill_when_begun(machines, name, index, placement):
    deadline = time.monotonic() + 60
    home = machines.disk(name) if placement == "node" else index
    while time.monotonic() < deadline and not list(home.rglob("building/*/shard_*.json")):
        time.sleep(0.005)
    machines.kill(name)


def change_it(machines, root, name):
    """Append, remove, compact and verify an index whose shards stay on their nodes."""
    index = root / name
    added = append(IndexAppendConfig(embeddings=root / "more", index=index))
    removed = remove(IndexRemoveConfig(index=index, key=("p0/0", "p5/49", "nobody")))
    packed = compact(IndexCompactConfig(index=index))
    freed = gc(IndexGcConfig(index=index)).freed
    whole = verify(IndexVerifyConfig(index=index))
    return added, removed, packed, freed, whole


def verify_without(machines, root, name, node):
    machines.kill(node)
    try:
        return verify(IndexVerifyConfig(index=root / name))
    except UnavailableError as error:
        return str(error)
    finally:
        machines.start(node)


def homes(disks, index):
    """Which node's disk each segment lies on."""
    return {
        path.name: path.relative_to(disks).parts[0]
        for path in disks.glob(f"*/{index.name}-*/segments/*")
    }


def content(folder, disks=None):
    """Key → vector, read shard by shard where they lie."""
    found = {}
    for record in folder.read().shards:
        home = folder
        if disks:
            (place,) = disks.glob(f"{record.node}/{folder.root.name}-*")
            home = IndexFolder(place)
        shard = Shard.open(home, record)
        for segment in shard.segments:
            for row in segment.live_rows():
                found[segment.table.row(int(row), [])["key"]] = segment.vectors[row]
    return found


def test_shards_are_built_on_all_nodes_and_stay_there(driver, disks, root):
    rows, nodes = driver.run(build_it, root, "held", "node", timeout=120)
    assert rows == PARTS * ROWS
    assert set(nodes) == {"a", "b", "c"}
    folder = IndexFolder(root / "held")
    at = homes(disks, folder.root)
    for shard in folder.read().shards:
        assert {at[segment.id] for segment in shard.segments} == {shard.node}
    assert not folder.segments.exists()
    before = content(folder, disks)

    added, removed, packed, freed, whole = driver.run(change_it, root, "held", timeout=120)
    assert (added.rows, added.replaced, added.total) == (2, 1, PARTS * ROWS + 1)
    assert (removed.removed, removed.unknown, removed.examples) == (2, 1, ("nobody",))
    assert packed.dropped == 3
    assert freed > 0
    assert whole.exit_code == 0
    assert [shard.node for shard in folder.read().shards] == nodes
    at = homes(disks, folder.root)
    assert {at[s.id] for s in folder.read().segments} == {"a", "b", "c"}
    assert len(at) == len(folder.read().segments)  # gc has swept the nodes
    after = content(folder, disks)
    assert after.keys() == before.keys() - {"p0/0", "p5/49"} | {"new/0"}
    same = after.keys() & before.keys() - {"p1/0"}
    assert all(np.array_equal(after[key], before[key]) for key in same)


def test_a_node_that_is_away_is_named(driver, root):
    told = driver.run(verify_without, root, "held", "c", timeout=120)
    assert "'c'" in told


@pytest.mark.parametrize("placement", ["shared", "node"])
def test_a_node_lost_during_the_build_leaves_a_whole_index(driver, disks, root, placement):
    name = f"lost-{placement}"
    arguments = (root, name, placement, 6, "b")
    rows, nodes = driver.run(build_it, *arguments, timeout=200)
    assert rows == PARTS * ROWS
    folder = IndexFolder(root / name)
    found = content(folder, disks if placement == "node" else None)
    assert found.keys() == {key for part in range(PARTS) for key in _keys(part)}
    if placement == "node":
        assert set(nodes) == {"a", "c"}  # what had been built on the lost node was built again
    else:
        assert len(Index.open(folder.root)) == rows
