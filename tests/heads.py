"""The head of a cluster on this machine, and nodes that join it, by Ray's own commands.

They have ports, a token and a temporary folder of their own, and each leads a session in which all
of it is found and ended, however the test ends. No other Ray of the machine is touched.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from tests.processes import reap

START_S = 180  # on a busy machine; 10 on a quiet one
TRIES = 3  # on a busy machine the half minute that Ray gives a node may not be enough
OBJECT_STORE_BYTES = 100 << 20
ROOT = Path(__file__).parents[1]
RAY = Path(sys.executable).parent / "ray"
SERVE = Path(sys.executable).parent / "serve"

_SOON = {  # how fast a lost node is noticed: after a second instead of a quarter of a minute
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "300",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_failure_threshold": "3",
}


class Head:
    """A running head.

    Attributes:
        address: that nodes and drivers take.
        dashboard: URL that `serve deploy` and `ray job submit` take.
        metrics: URL where the node's agent gives what all its processes count.
        logs: folder with what they write.
        environment: for those who use the cluster.
    """

    def __init__(self, scratch, gcs, dashboard, metrics, environment, ending):
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.logs = scratch / "session_latest/logs"
        self.environment = environment
        self._scratch = scratch
        self._ending = ending

    def serve(self, *arguments, timeout=60):
        """What the command `serve` says; its errors are the test's."""
        done = _run([SERVE, *arguments, "--address", self.dashboard], self.environment, timeout)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout

    def submit(self, *command, working_dir=ROOT, token=None, timeout=300, options=()):
        """`ray job submit` of `python *command`, waited for; returns the completed process.

        Args:
            command: a script in `working_dir`, and its arguments.
            working_dir: folder that is shipped.
            token: another than the cluster's.
            timeout: seconds.
            options: more options of `ray job submit`.
        """
        shipped = ("--working-dir", working_dir, *options, "--", "python", *command)
        return self.job("submit", *shipped, token=token, timeout=timeout)

    def job(self, verb, *arguments, token=None, timeout=60):
        """Completed process of `ray job VERB --address DASHBOARD *arguments`."""
        environment = self.environment | ({"RAY_AUTH_TOKEN": token} if token else {})
        command = [RAY, "job", verb, "--address", self.dashboard, *arguments]
        return _run(command, environment, timeout)

    def join(self, cpus=2, labels=None, resources=None):
        """Start a node and wait until Ray counts it; it ends with the head, or by its `kill`.

        Args:
            cpus: logical ones.
            labels: Ray's, by key.
            resources: custom ones, by name.
        """
        agent, agent_grpc, metrics, runtime = free_ports(4)
        options = {
            "address": self.address,
            "labels": ",".join(f"{key}={value}" for key, value in (labels or {}).items()),
            "resources": json.dumps(resources or {}),
        } | _options(self._scratch, cpus, agent, agent_grpc, metrics, runtime)
        before = self.alive()
        pid, (node,) = _start(
            options, self.environment, self._ending, lambda: self.alive() - before
        )
        worker = Worker(pid, node)
        self._ending.callback(worker.kill)
        return worker

    def alive(self):
        """Ids of the nodes that Ray counts now."""
        rows = self._get("/nodes?view=summary")["data"]["summary"]
        return {row["raylet"]["nodeId"] for row in rows if row["raylet"]["state"] == "ALIVE"}

    def ran(self, kind):
        """(name, node id) of all `actors` or `tasks`, also those that have ended."""
        rows = self._get(f"/api/v0/{kind}?detail=1&limit=10000")["data"]["result"]["result"]
        return [(row.get("class_name") or row["name"], row["node_id"]) for row in rows]

    def _get(self, path):
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        request = urllib.request.Request(self.dashboard + path, headers=token)
        with urllib.request.urlopen(request, timeout=10) as got:
            return json.load(got)


class Worker:
    """A node that has joined.

    Attributes:
        pid: of its `ray start`, which leads the session of all its processes.
        id: Ray's.
    """

    def __init__(self, pid, node):
        self.pid = pid
        self.id = node

    def kill(self):
        """kill -9 of all its processes, as if the power went."""
        reap(self.pid)


@contextmanager
def head(cpus=4, *, haproxy=False):
    """A head, until the block ends, and the nodes that join it.

    Args:
        cpus: logical ones.
        haproxy: have Serve put HAProxy before its replicas, in place of its own proxy.
    """
    scratch = Path(tempfile.mkdtemp(prefix="clipray-", dir="/tmp"))  # sockets want a short path
    gcs, dashboard, client, *ports = free_ports(7)
    environment = os.environ | _environment() | (_haproxy(scratch) if haproxy else {})
    options = {
        "head": None,
        "port": gcs,
        "dashboard-port": dashboard,
        "ray-client-server-port": client,
    } | _options(scratch, cpus, *ports)
    with ExitStack() as ending:
        ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        cluster = Head(scratch, gcs, dashboard, ports[2], environment, ending)
        _start(options, environment, ending, cluster.alive)
        yield cluster


def _options(scratch, cpus, agent, agent_grpc, metrics, runtime):
    """Those of every node: several on one host need ports of their own."""
    return {
        "node-ip-address": "127.0.0.1",
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "runtime-env-agent-port": runtime,
        "num-cpus": cpus,
        "object-store-memory": OBJECT_STORE_BYTES,
        "temp-dir": scratch,
    }


def _start(options, environment, ending, found):
    """`ray start`, ended by `ending`; returns its pid and what `found` returns when it stands."""
    for _ in range(TRIES - 1):
        process, said = _begin(options, environment, ending)
        with suppress(AssertionError):
            return process.pid, _wait_until(found, process, said)
        reap(process.pid)
    process, said = _begin(options, environment, ending)
    return process.pid, _wait_until(found, process, said)


def _begin(options, environment, ending):
    given = [
        f"--{name}" if value is None else f"--{name}={value}" for name, value in options.items()
    ]
    path = options["temp-dir"] / f"said-{options['metrics-export-port']}"
    said = ending.enter_context(path.open("wb"))
    process = subprocess.Popen(
        [RAY, "start", "--block", *given],
        env=environment,
        start_new_session=True,
        stdout=said,
        stderr=said,
    )
    ending.callback(_end, process)
    return process, path


def _end(process):
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    reap(process.pid)
    process.wait()


def _run(command, environment, timeout):
    return subprocess.run(
        [str(part) for part in command],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def free_ports(count):
    """Ports that nobody listens on."""
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def _environment():
    path = f"{RAY.parent}{os.pathsep}{os.environ['PATH']}"  # as where the environment is activated
    return _SOON | {
        "PATH": path,
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_BACKEND_LOG_LEVEL": "fatal",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",
    }


def _haproxy(scratch):
    """It has files and ports of its own, which all listen on all addresses."""
    stats, metrics = free_ports(2)
    return {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(scratch / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(scratch / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(scratch),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(scratch / "haproxy.state"),
    }


def _wait_until(found, process, said):
    """What `found` returns, as soon as there is something."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, said.read_text()[-2000:]
        with suppress(OSError):  # nobody listens yet
            if something := found():
                return something
        time.sleep(0.2)
    raise TimeoutError(said.read_text()[-2000:])
