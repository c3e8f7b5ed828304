"""Names of nodes, and tasks that are spread over three simulated ones, pinned, and lost there."""

import os
import random
import signal
import socket
import time
from contextlib import closing
from pathlib import Path
from threading import Thread

import pytest
import ray

from clipray import nodes
from clipray.errors import ClipRayError, ConfigError, InputError, UnavailableError
from clipray.nodes import ONE_CPU, Call, Needs
from tests.simulated import simulated

CPUS = 2
HOLD_S = 30  # longer than a test takes
HELD = "flowers-a9b2ae66"  # of /data/flowers


@pytest.fixture(scope="module")
def disks(tmp_path_factory):
    return tmp_path_factory.mktemp("disks")


@pytest.fixture(scope="module")
def driver(disks):
    with simulated(disks, names="abc", cpus=CPUS) as driver:
        yield driver


# On the nodes.


def look(root):
    return nodes.here(), nodes.local_root(root)


def hold(place):
    """Say which task runs where, and wait until it may end."""
    folder, task = place
    (folder / f"{task}-{nodes.here()}").touch()
    wait_for(folder / "go")
    return task


def hold_or_refuse(place):
    """Raise once all others run, if there is nothing to hold."""
    folder, task = place
    if task is not None:
        return hold(place)
    wait_until(lambda: len(list(folder.iterdir())) == 5)
    raise InputError("nothing to hold")


def fill_disk(_):
    raise OSError(28, "No space left on device")


def doze(_):
    time.sleep(random.uniform(0, 0.01))


def die_once(mark):
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"


def die(_):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(path):
    wait_until(path.exists)


def wait_until(true):
    deadline = time.monotonic() + HOLD_S
    while not true():
        assert time.monotonic() < deadline, true
        time.sleep(0.02)


# In the driver.


def drive(machines, function, calls, needs=ONE_CPU):
    """Results and nodes in the order of the calls, or the error."""
    try:
        done = sorted(nodes.run(function, calls, needs))
    except (ClipRayError, OSError) as error:
        return type(error), str(error)
    assert [number for number, _, _ in done] == list(range(len(calls)))
    return [(result, node) for _, result, node in done]


def drive_and_kill(machines, name, folder, calls):
    """Hold calls, kill a node once all run, and let them go on."""

    def kill():
        wait_until(lambda: len(list(folder.iterdir())) == len(calls))
        machines.kill(name)
        (folder / "go").touch()

    killer = Thread(target=kill)
    killer.start()
    try:
        return drive(machines, hold, calls)
    finally:
        killer.join()


def leave(machines, times):
    """Begin tasks and leave them, when the first has ended."""
    for _ in range(times):
        with closing(nodes.run(doze, [Call(None, on="b")] * 8)) as tasks:
            next(tasks)
            doze(None)


def start(machines, name, labels=None):
    machines.start(name, labels)


def kill(machines, name):
    machines.kill(name)


def ids(machines):
    return {node.name: node.id for node in nodes.alive()}


def capacities(machines):
    return [(node.name, node.cpus, node.gpus) for node in nodes.alive()]


def driven_from(machines):
    return nodes.here()


def selected(machines, name):
    return ray.get(ray.remote(label_selector=nodes.selector(name))(nodes.here).remote())


def test_nodes_go_by_their_labels(driver):
    assert driver.run(capacities) == [("a", CPUS, 0), ("b", CPUS, 0), ("c", CPUS, 0)]
    assert driver.run(driven_from) == "a"


def test_unpinned_tasks_are_spread_over_all_nodes(driver, disks):
    done = driver.run(drive, look, [Call(Path("/data/flowers"))] * 6)
    assert {node for _, node in done} == {"a", "b", "c"}
    assert all(result == (node, disks / node / HELD) for result, node in done)


def test_pinned_tasks_stay_where_they_belong(driver, disks):
    names = "bcbbca"  # more of b than it can run at once
    calls = [Call(Path("/data/flowers"), on=name) for name in names]
    done = driver.run(drive, look, calls)
    assert done == [((name, disks / name / HELD), name) for name in names]
    near = driver.run(drive, look, [Call(Path("/x"), near=name) for name in names])
    assert [node for _, node in near] == list(names)


def test_a_node_that_is_too_small_or_unknown_is_told(driver):
    kind, told = driver.run(drive, look, [Call(Path("/x"), on="b")], Needs(cpus=CPUS + 1))
    assert (kind, "node 'b' has 2 CPUs and 0 GPUs" in told) == (UnavailableError, True), told
    kind, told = driver.run(drive, look, [Call(Path("/x"), on="z")])
    assert (kind, "node 'z' is not alive" in told) == (UnavailableError, True), told
    assert told.endswith("Alive: a, b, c")


def test_an_error_of_a_task_comes_out_as_itself_and_ends_the_others(driver, tmp_path):
    calls = [Call((tmp_path, f"held{number}")) for number in range(5)]
    began = time.monotonic()
    told = driver.run(drive, hold_or_refuse, [*calls, Call((tmp_path, None))])
    assert told == (InputError, "nothing to hold")
    driver.run(drive, look, [Call(Path("/x"), on=name) for name in "abc"], Needs(cpus=CPUS))
    assert time.monotonic() - began < HOLD_S / 2
    assert driver.run(drive, fill_disk, [Call(0)]) == (
        OSError,
        "[Errno 28] No space left on device",
    )


def test_tasks_that_end_as_they_are_cancelled_do_not_end_the_driver(driver):
    driver.run(leave, 100)


def test_a_killed_process_is_tried_again_so_often(driver, tmp_path):
    assert driver.run(drive, die_once, [Call(tmp_path / "died", on="b")]) == [("survived", "b")]
    kind, told = driver.run(drive, die, [Call(0)], Needs(retries=1))
    assert (kind, told.startswith("a task was lost 2 times")) == (UnavailableError, True), told


def test_a_lost_node_costs_a_repetition_elsewhere(driver, tmp_path):
    near = Call((tmp_path, "near"), near="c")
    calls = [near, *(Call((tmp_path, f"free{number}")) for number in range(3))]
    before = driver.run(ids)
    done = driver.run(drive_and_kill, "c", tmp_path, calls)
    assert (tmp_path / "near-c").exists()
    assert any((tmp_path / f"free{number}-c").exists() for number in range(3))
    assert [result for result, _ in done] == [call.argument[1] for call in calls]
    assert {node for _, node in done} == {"a", "b"}

    assert driver.run(ids).keys() == {"a", "b"}
    assert driver.run(drive, look, [Call(Path("/x"), on="c")])[0] is UnavailableError
    ((_, node),) = driver.run(drive, look, [Call(Path("/x"), near="c")])
    assert node in {"a", "b"}

    driver.run(start, "c")
    after = driver.run(ids)
    assert after.keys() == before.keys()
    assert after["c"] != before["c"]
    ((_, node),) = driver.run(drive, look, [Call(Path("/x"), on="c")])
    assert node == "c"


def test_what_must_run_on_a_lost_node_is_told(driver, tmp_path):
    calls = [Call((tmp_path, name), on=name) for name in "abc"]
    kind, told = driver.run(drive_and_kill, "c", tmp_path, calls)
    driver.run(start, "c")
    assert (kind, "node 'c' died" in told) == (UnavailableError, True), told


def test_without_a_label_the_hostname_counts(driver):
    name = socket.gethostname()
    driver.run(start, "unlabelled", {})
    done = driver.run(drive, look, [Call(Path("/x"), on=name)])
    assert driver.run(selected, name) == name
    assert driver.run(selected, "b") == "b"
    driver.run(kill, "unlabelled")
    ((found, _), node) = done[0]
    assert (found, node) == (name, name)


def row(hostname, address, labels=None, *, is_alive=True):
    return {
        "Alive": is_alive,
        "NodeID": address.replace(".", "").ljust(56, "0"),
        "NodeManagerAddress": address,
        "NodeManagerHostname": hostname,
        "Labels": labels or {},
        "Resources": {"CPU": 4.0, "GPU": 1.0},
    }


def test_nodes_of_one_name_are_refused_not_guessed(monkeypatch):
    rows = [
        row("vm", "10.0.0.1"),
        row("vm", "10.0.0.2"),
        row("vm", "10.0.0.3", {"clipray-node": "x"}),
    ]
    monkeypatch.setattr(ray, "nodes", lambda: rows)
    assert nodes.find("x").address == "10.0.0.3"
    for ask in (nodes.alive, lambda: nodes.find("vm")):
        with pytest.raises(ConfigError, match=r"2 nodes are called 'vm' \(10.0.0.1, 10.0.0.2\)"):
            ask()
    rows[0] = row("vm", "10.0.0.1", is_alive=False)  # what died does not count
    assert nodes.find("vm").id.startswith("10002")


def test_a_node_holds_its_files_under_the_same_path_or_where_its_environment_says(monkeypatch):
    monkeypatch.delenv("CLIPRAY_NODE_ROOT", raising=False)
    assert nodes.local_root(Path("/data/flowers")) == Path("/data/flowers")
    monkeypatch.setenv("CLIPRAY_NODE_ROOT", "/mnt/fast")
    assert nodes.local_root(Path("/data/flowers")) == Path("/mnt/fast") / HELD
    assert nodes.local_root(Path("/other/flowers")) != Path("/mnt/fast") / HELD
