"""Clusters of several nodes on this machine, each in a process of its own.

A process can have one Ray only, so the cluster and its driver live in a child; functions are sent
there and what they return comes back. The child leads a session, in which all of its Ray is found
and ended, however the test ends. No Ray of the machine is touched: the cluster has its own token,
and its own temporary folder, where Ray also notes the address that others would find.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from contextlib import contextmanager
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from tests.processes import children, kill, reap

START_S = 120  # on a busy machine; 6 on a quiet one
OBJECT_STORE_BYTES = 80 << 20

_SOON = {  # how fast a lost node is noticed: after a second instead of a quarter of a minute
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 300,
    "health_check_timeout_ms": 3000,
    "health_check_failure_threshold": 3,
}


@contextmanager
def simulated(root, names="abc", cpus=1):
    """Nodes labelled with `names`; the first is the head, and what it drives ends with the block.

    Args:
        root: folder; a node's own disk is the one of its name in it.
        names: of the nodes.
        cpus: of each.
    """
    scratch = Path(tempfile.mkdtemp(prefix="clipray-", dir="/tmp"))  # sockets want a short path
    ours, theirs = Pipe()
    with (scratch / "said").open("w+b") as said:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.simulated", str(theirs.fileno())],
            cwd=Path(__file__).parents[1],
            env=_environment(scratch),
            pass_fds=[theirs.fileno()],
            start_new_session=True,
            stdout=said,
            stderr=said,
        )
        theirs.close()
        driver = Driver(ours, said)
        try:
            driver.run(Machines.begin, root, names, cpus, timeout=START_S)
            yield driver
        finally:
            reap(process.pid)
            process.wait()
            ours.close()
            shutil.rmtree(scratch, ignore_errors=True)


def _environment(scratch):
    return os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_TMPDIR": str(scratch),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


class Driver:
    """The process that drives the cluster, as the test sees it."""

    def __init__(self, connection, said):
        self._connection = connection
        self._said = said

    def run(self, function, *arguments, timeout=60):
        """What `function(machines, *arguments)` returns there; a function of a module."""
        self._connection.send((function, arguments))
        if not self._connection.poll(timeout):
            raise TimeoutError(f"{function.__qualname__}: {timeout} s are over; {self._tail()}")
        try:
            ended_well, told = self._connection.recv()
        except EOFError:
            raise AssertionError(f"the driver died; {self._tail()}") from None
        assert ended_well, told
        return told

    def _tail(self):
        self._said.seek(0)
        return self._said.read()[-2000:].decode(errors="replace")


class Machines:
    """The nodes, as the driver sees them."""

    def __init__(self):
        self._cluster = Cluster()
        self._nodes = {}
        self._lost = set()
        self._root = None
        self._cpus = 1

    def begin(self, root, names, cpus):
        self._root, self._cpus = root, cpus
        for name in names:
            self.start(name)
        ray.init(address=self._cluster.address, log_to_driver=False, logging_level="ERROR")
        os.environ["RAY_ADDRESS"] = self._cluster.address  # as a user of a cluster has it

    def start(self, name, labels=None):
        """Add a node, which is alive when this returns, and nothing else of that name."""
        while self._lost and not self._lost <= _dead():
            time.sleep(0.05)
        head = {} if self._nodes else {"_system_config": _SOON, "no_monitor": True}
        self._nodes[name] = self._cluster.add_node(
            num_cpus=self._cpus,
            labels={"clipray-node": name} if labels is None else labels,
            env_vars={"CLIPRAY_NODE_ROOT": str(self.disk(name))},
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            include_log_monitor=False,
            **head,
        )

    def kill(self, name):
        """kill -9 of all processes of a node, as if the power went; not of the head."""
        node = self._nodes.pop(name)
        workers = children(node.all_processes["raylet"][0].process.pid)
        self._cluster.remove_node(node, allow_graceful=False)
        kill(workers)  # which would end their tasks first
        self._lost.add(node.node_id)

    def disk(self, name):
        """Folder that stands for the disk of a node."""
        return Path(self._root) / name


def _dead():
    """Ids of nodes whose loss Ray has noticed."""
    return {row["NodeID"] for row in ray.nodes() if not row["Alive"]}


def _serve(connection):
    machines = Machines()
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:  # the test process is gone; Ray ends at exit
            return
        try:
            connection.send((True, function(machines, *arguments)))
        except Exception:  # noqa: BLE001 - it is raised in the test
            connection.send((False, traceback.format_exc()))


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
