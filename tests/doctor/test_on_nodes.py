"""Real nodes: one that does not see the shared folder, two of one name, and strangers."""

import ctypes
import json
import os
import secrets
import subprocess
import sys

import pytest

from clipray.doctor import survey
from tests.elastic import elastic
from tests.mounts import require_mounts
from tests.simulated import simulated

pytestmark = pytest.mark.soak

NEW_MOUNTS = 0x20000  # CLONE_NEWNS
OWN_FOLDER = 0x200  # CLONE_FS
SURVEYED_S = 240


def start_blind(machines, name, folder):
    """A node that has an empty disk where the others have `folder`."""
    kernel = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/self/ns/mnt", os.O_RDONLY)
    assert kernel.unshare(NEW_MOUNTS) == 0, os.strerror(ctypes.get_errno())
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", folder], check=True)
    machines.start(name)
    assert kernel.unshare(OWN_FOLDER) == 0  # threads begun meanwhile share it, setns wants none
    assert kernel.setns(before, NEW_MOUNTS) == 0, os.strerror(ctypes.get_errno())
    os.close(before)


def start_twin(machines, name):
    machines.start(f"{name} again", labels={"clipray-node": name})


def surveyed(machines, *places):
    return [(one.level, one.check, one.found) for one in survey.survey(places)]


def lines(found, check):
    return [(level, line) for level, name, line in found if name == check]


def test_a_node_is_named_that_does_not_see_the_folder_and_so_are_twins(tmp_path):
    if os.geteuid():
        pytest.skip("only root can give one node mounts of its own")
    require_mounts()
    shared = tmp_path / "shared"
    shared.mkdir()
    with simulated(tmp_path / "disks", "ab") as driver:
        driver.run(start_blind, "c", str(shared))
        found = driver.run(surveyed, str(shared), timeout=SURVEYED_S)
        assert [level for level, _ in lines(found, "nodes")] == ["ok"]
        ((level, told),) = lines(found, "shared storage")
        assert level == "problem"
        assert told.endswith("1 of 3 nodes do not see it: node 'c': there is nothing of it")
        assert lines(found, "clock") == [("ok", "within 1 s on 3 nodes")]
        driver.run(start_twin, "b")
        found = driver.run(surveyed, timeout=SURVEYED_S)
        told = [line for level, line in lines(found, "nodes") if level == "problem"]
        assert told == [
            "2 go by the name 'b'; shards and replicas cannot be kept on one",
        ]
    assert not list(shared.iterdir())


def doctor(environment, *options):
    done = subprocess.run(
        [sys.executable, "-m", "clipray.cli", "doctor", "--json", *map(str, options)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SURVEYED_S,
        check=False,
    )
    found = json.loads(done.stdout)["findings"]
    return done.returncode, [(one["level"], one["check"], one["found"]) for one in found]


def test_the_command_says_who_is_let_in(tmp_path):
    with elastic() as cluster:
        status, found = doctor(cluster.environment, "--path", tmp_path)
        assert status == 0, found
        ((level, told),) = lines(found, "dashboard")
        assert (level, told.endswith("(on loopback) asks for a token")) == ("ok", True)
        assert ("note", "nodes", "none with CPUs") in found
        for changed in ({"RAY_AUTH_TOKEN": secrets.token_hex(32)}, {"RAY_AUTH_MODE": "disabled"}):
            status, found = doctor(cluster.environment | changed)
            assert status == 1
            ((level, told),) = lines(found, "cluster")
            assert told.endswith("lets only those in who have its token")
