"""The head of a cluster on this machine, started and asked with Ray's own commands.

It has ports, a token and a temporary folder of its own, and leads a session in which all of it is
found and ended, however the test ends. No other Ray of the machine is touched.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.processes import reap

START_S = 90
RAY = Path(sys.executable).parent / "ray"
SERVE = Path(sys.executable).parent / "serve"


class Head:
    """A running head.

    Attributes:
        dashboard: URL that `serve deploy` takes.
        metrics: URL where the node's agent gives what all its processes count.
        logs: folder with what they write.
        environment: for those who use the cluster.
    """

    def __init__(self, scratch, dashboard, metrics, environment):
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self.metrics = f"http://127.0.0.1:{metrics}/metrics"
        self.logs = scratch / "session_latest/logs"
        self.environment = environment

    def serve(self, *arguments, timeout=60):
        """What the command `serve` says; its errors are the test's."""
        done = subprocess.run(
            [SERVE, *map(str, arguments), "--address", self.dashboard],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout


@contextmanager
def head(cpus=4, *, haproxy=False):
    """A head, until the block ends.

    Args:
        cpus: logical ones.
        haproxy: have Serve put HAProxy before its replicas, in place of its own proxy.
    """
    scratch = Path(tempfile.mkdtemp(prefix="clipray-", dir="/tmp"))  # sockets want a short path
    gcs, dashboard, agent, agent_grpc, metrics, client, runtime = free_ports(7)
    environment = os.environ | _environment() | (_haproxy(scratch) if haproxy else {})
    options = {
        "port": gcs,
        "node-ip-address": "127.0.0.1",
        "dashboard-port": dashboard,
        "dashboard-agent-listen-port": agent,
        "dashboard-agent-grpc-port": agent_grpc,
        "metrics-export-port": metrics,
        "ray-client-server-port": client,
        "runtime-env-agent-port": runtime,
        "num-cpus": cpus,
        "object-store-memory": 100 << 20,
        "temp-dir": scratch,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    with (scratch / "said").open("w+b") as said:
        process = subprocess.Popen(
            [RAY, "start", "--head", "--block", *given],
            env=environment,
            start_new_session=True,
            stdout=said,
            stderr=said,
        )
        try:
            _wait_for(dashboard, process, scratch / "said")
            yield Head(scratch, dashboard, metrics, environment)
        finally:
            process.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            reap(process.pid)
            process.wait()
            shutil.rmtree(scratch, ignore_errors=True)


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
    return {
        "PYTHONPATH": str(Path(__file__).parents[1]),
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


def _wait_for(port, process, said):
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        assert process.poll() is None, said.read_text()[-2000:]
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.2)
    raise TimeoutError(said.read_text()[-2000:])
