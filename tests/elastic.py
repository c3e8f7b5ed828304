"""A cluster of this machine that grows and shrinks, with Ray's fake provider of nodes.

The head has no CPUs; the autoscaler starts raylets where a cloud would start machines. All of it
has a token, ports and a temporary folder of its own, and leads a session in which it is found and
ended.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

from ray.autoscaler.v2.sdk import get_cluster_status

from tests.heads import RAY, SERVE, free_ports
from tests.processes import reap

IDLE_S = 10  # without work, and a node goes
START_S = 90
OBJECT_STORE_BYTES = 80 << 20

TYPES = {
    "cpu": {"resources": {"CPU": 2, "object_store_memory": OBJECT_STORE_BYTES}, "max_workers": 3},
    "gpu": {
        "resources": {"CPU": 1, "GPU": 1, "object_store_memory": OBJECT_STORE_BYTES},
        "max_workers": 2,
    },
}


class TimeLine:
    """What the cluster was, from the moment it was begun.

    Attributes:
        rows: seconds, nodes alive by type, how many of them have work, and bundles that wait.
        notes: what happened, as lines to be shown.
    """

    def __init__(self, name, cluster):
        self.rows, self.notes = [], [f"\n{name}"]
        self._began = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.elastic"],
            env=cluster.environment,
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
        )
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self._process.stdout:
            alive, busy, pending = json.loads(line)
            self.rows.append((self.now(), alive, busy, pending))
            told = ", ".join(f"{count} {kind}" for kind, count in alive.items()) or "none"
            self.note(f"nodes: {told}; busy: {busy}; waiting for room: {pending}")

    def note(self, what):
        """Keep a line for those who read the test's output."""
        self.notes.append(f"{self.now():6.1f} s  {what}")

    def now(self):
        """Seconds from the beginning on."""
        return time.monotonic() - self._began

    def came(self, kind):
        """Seconds until the first node of that type."""
        return next(at for at, alive, *_ in self.rows if alive.get(kind))

    def most(self, kind):
        """Nodes of that type at one time."""
        return max(alive.get(kind, 0) for _, alive, *_ in self.rows)

    @property
    def busiest(self):
        """Nodes that had work at one time."""
        return max(busy for *_, busy, _ in self.rows)

    def until(self, is_so, patience_s):
        """Seconds until the nodes alive are as asked; fails after so many more."""
        deadline = self.now() + patience_s
        while not (self.rows and is_so(self.rows[-1][1])):
            assert self.now() < deadline, self.rows
            time.sleep(0.1)
        return self.now()

    def end(self):
        """Look no more."""
        self._process.kill()
        self._process.wait()
        self._reader.join()


@contextmanager
def watched(name, cluster):
    """A time line beside the block."""
    line = TimeLine(name, cluster)
    try:
        line.until(lambda alive: True, START_S)
        yield line
    finally:
        line.end()


class Elastic:
    """A cluster with an autoscaler.

    Attributes:
        environment: for those who use it.
        dashboard: URL that `serve deploy` takes.
    """

    def __init__(self, environment, dashboard):
        self.environment = environment
        self.dashboard = f"http://127.0.0.1:{dashboard}"

    def clipray(self, *arguments, patience_s=300):
        """Run a command on it; returns what it said on stderr."""
        command = [sys.executable, "-m", "clipray.cli", *map(str, arguments)]
        return self._run(command, patience_s)

    def serve(self, *arguments, patience_s=120):
        """Run a command of Ray Serve on it."""
        return self._run([SERVE, *map(str, arguments), "--address", self.dashboard], patience_s)

    def _run(self, command, patience_s):
        done = subprocess.run(
            command,
            env=self.environment,
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stderr


@contextmanager
def elastic():
    """A head without CPUs and an autoscaler; no nodes yet."""
    with TemporaryDirectory(prefix="clipray-", dir="/tmp") as scratch:  # sockets want a short path
        gcs, dashboard, agent, client, runtime = free_ports(5)
        config = Path(scratch) / "autoscaling.json"
        config.write_text(json.dumps(_config(f"127.0.0.1:{gcs}")), encoding="utf-8")
        options = {
            "port": gcs,
            "node-ip-address": "127.0.0.1",
            "dashboard-port": dashboard,
            "dashboard-agent-listen-port": agent,
            "ray-client-server-port": client,
            "runtime-env-agent-port": runtime,
            "num-cpus": 0,
            "object-store-memory": OBJECT_STORE_BYTES,
            "temp-dir": scratch,
            "autoscaling-config": config,
        }
        given = [f"--{name}={value}" for name, value in options.items()]
        environment = os.environ | _environment() | {"RAY_ADDRESS": f"127.0.0.1:{gcs}"}
        with (Path(scratch) / "said").open("w+b") as said:
            process = subprocess.Popen(
                [RAY, "start", "--head", "--block", *given],
                env={name: value for name, value in environment.items() if name != "RAY_ADDRESS"},
                start_new_session=True,
                stdout=said,
                stderr=said,
            )
            try:
                _wait_for(Path(scratch) / "said", process)
                yield Elastic(environment, dashboard)
            finally:
                process.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                reap(process.pid)
                process.wait()


def _environment():
    return {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }


def _config(gcs):
    commands = ("file_mounts", "cluster_synced_files", "initialization_commands", "setup_commands")
    return {
        "cluster_name": "elastic",
        "max_workers": sum(kind["max_workers"] for kind in TYPES.values()),
        "upscaling_speed": 100.0,
        "idle_timeout_minutes": IDLE_S / 60,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": gcs,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "auth": {},
        "docker": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
            **{name: {"node_config": {}, "min_workers": 0, **kind} for name, kind in TYPES.items()},
        },
        "head_node": {},
        "worker_nodes": {},
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [],
        "worker_start_ray_commands": [],
        **{name: {} if name == "file_mounts" else [] for name in commands},
    }


def _wait_for(said, process):
    deadline = time.monotonic() + START_S
    while b"Ray runtime started" not in said.read_bytes():
        assert process.poll() is None, said.read_text()[-2000:]
        assert time.monotonic() < deadline, said.read_text()[-2000:]
        time.sleep(0.2)


def _tell(address):
    """Write a line whenever the cluster has changed."""
    told = None
    while True:
        status = get_cluster_status(address)
        busy = [one for one in status.active_nodes if one.ray_node_type_name in TYPES]
        idle = [one for one in status.idle_nodes if one.ray_node_type_name in TYPES]
        alive = Counter(one.ray_node_type_name for one in (*busy, *idle))
        demands = status.resource_demands
        asked = [*demands.ray_task_actor_demand, *demands.placement_group_demand]
        pending = sum(each.count for one in asked for each in one.bundles_by_count)
        if told != (alive, len(busy), pending):
            told = alive, len(busy), pending
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()
        time.sleep(0.5)


if __name__ == "__main__":
    _tell(os.environ["RAY_ADDRESS"])
