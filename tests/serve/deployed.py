"""A service on the running Ray whose processes are known, to be killed and stopped."""

import os
import signal
import socket
from contextlib import contextmanager

from ray import serve

from clipray.serve.app import APP_NAME, build
from clipray.serve.args import Listen, ServeArgs
from clipray.serve.local import QUIET
from tests import processes


class Deployed:
    """The service over one index.

    Args:
        index: its folder.
        options: of the application.
    """

    def __init__(self, index, **options) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.listen = Listen(port=probe.getsockname()[1])
        self.url = self.listen.url
        self._index = str(index)
        self._options = {}
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        self.deploy(**options)

    def deploy(self, **options):
        """Deploy it with these options besides, unless it has them."""
        if self._options == self._options | options:
            return
        self._options |= options
        args = ServeArgs(
            index=(self._index,), listen=self.listen, inside="127.0.0.1", **self._options
        )
        serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config=QUIET)


def replicas(name):
    """Processes of a deployment on the Ray that this process has started, the oldest first."""
    return _processes(f"ray::ServeReplica:{APP_NAME}:{name}")


def controllers():
    """Processes of Serve's controller, likewise."""
    return _processes("ray::ServeController")


def is_whole(name, count, without=()):
    """Whether Serve has so many replicas of a deployment, none of which was there before."""
    pids = [process.pid for process in replicas(name)]
    if len(pids) != count or any(process.pid in pids for process in without):
        return False
    deployment = serve.status().applications[APP_NAME].deployments[name]
    return deployment.replica_states == {"RUNNING": count}


@contextmanager
def stopped(process):
    """A process that keeps its connections and does nothing."""
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def _processes(title):
    found = [p for p in processes.offspring(os.getpid()) if p.name.startswith(title)]
    return sorted(found, key=lambda process: process.pid)
