"""What a task is given of a cluster, and where tasks run."""

import pytest

from clipray import nodes
from clipray.errors import ConfigError, UnavailableError
from clipray.index import tasks
from clipray.index.builder import build_segment
from clipray.index.deletions import mark_shard
from clipray.index.manifest import IndexFolder
from clipray.index.tasks import HERE_UP_TO, RayTasks, _needs, _threads, workers_for
from clipray.index.workers import Done, Here


def row(hostname, cpus, gpus=0, port=1):
    return {
        "Alive": True,
        "NodeID": f"{port:028x}",
        "NodeManagerHostname": hostname,
        "NodeManagerAddress": "10.0.0.1",
        "Resources": {"CPU": cpus, "GPU": gpus},
        "Labels": {},
    }


@pytest.fixture
def cluster(monkeypatch):
    """A cluster as Ray tells of it: a head that takes no tasks, and two workers."""
    rows = [row("head", 0), row("one", 16, 2), row("two", 8, 1)]
    monkeypatch.setattr("ray.nodes", lambda: rows)
    return rows


@pytest.mark.parametrize(("calls", "threads"), [(1, 8), (2, 8), (4, 6), (24, 1), (100, 1)])
def test_tasks_that_build_share_the_cluster_out(cluster, calls, threads):
    assert _threads(build_segment, calls) == threads
    assert _needs(build_segment) == nodes.Needs(cpus=1, gpus=1)


def test_other_tasks_and_nodes_without_a_gpu_get_little(cluster):
    assert _needs(mark_shard) == nodes.ONE_CPU
    assert _threads(mark_shard, 2) == 1
    cluster[2]["Resources"]["GPU"] = 0
    assert _needs(build_segment).gpus == 0


def test_everywhere_is_where_tasks_run(cluster, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(RayTasks, "run", lambda self, function, calls, on: asked.append(on) or [])
    shared, held = (RayTasks(IndexFolder(tmp_path), kind) for kind in ("shared", "node"))
    shared.everywhere(len, ())
    cluster[2]["NodeManagerHostname"] = "one"
    shared.everywhere(len, ())  # they share the folder, whatever they are called
    assert asked == [["one", "two"], [None]]
    with pytest.raises(ConfigError, match="2 nodes are called 'one'"):
        held.everywhere(len, ())


def test_a_node_that_dies_meanwhile_is_left_out(cluster, monkeypatch, tmp_path):
    def run(self, function, calls, on):
        if "two" in on:
            cluster[2]["Alive"] = False  # now Ray has noticed
            raise UnavailableError("node 'two' died")
        return [Done(number, "seen", name) for number, name in enumerate(on)]

    monkeypatch.setattr(RayTasks, "run", run)
    monkeypatch.setattr(tasks, "NOTICE_S", 0)
    assert RayTasks(IndexFolder(tmp_path), "node").everywhere(len, ()) == {"one": "seen"}


def test_little_work_on_a_shared_folder_is_done_here(tmp_path):
    with workers_for(IndexFolder(tmp_path), "shared", HERE_UP_TO) as workers:
        assert isinstance(workers, Here)
