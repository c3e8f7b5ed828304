"""A service on the running Ray whose processes are known, so that they can be killed and stopped."""

import os
import signal
import socket
from contextlib import contextmanager

from ray import serve

from clipray.serve.app import APP_NAME, build
from clipray.serve.args import Listen, ServeArgs
from clipray.serve.local import QUIET
from tests import processes

CONTROLLER = "ray::ServeController"


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
        self._options = options
        serve.start(proxy_location="Disabled", logging_config=QUIET)
        self.deploy()

    def deploy(self, **options):
        """Deploy it with other options besides, unless it has them."""
        self._options |= options
        args = ServeArgs(
            index=(self._index,), listen=self.listen, inside="127.0.0.1", **self._options
        )
        serve.run(build(args), name=APP_NAME, route_prefix="/", logging_config=QUIET)

    def pids(self, name):
        """Of the processes of a deployment, the oldest first."""
        return [p.pid for p in self._processes(f"ray::ServeReplica:{APP_NAME}:{name}")]

    def controller(self):
        """Process id of Serve's controller."""
        return [p.pid for p in self._processes(CONTROLLER)]

    def memory_mb(self, name):
        """Of the first process of a deployment."""
        return self._processes(f"ray::ServeReplica:{APP_NAME}:{name}")[0].memory_mb

    def is_whole(self, name, replicas, without=()):
        """Whether Serve has so many replicas of a deployment, none of them an old one."""
        pids = self.pids(name)
        if len(pids) != replicas or set(pids) & set(without):
            return False
        states = serve.status().applications[APP_NAME].deployments[name].replica_states
        return states == {"RUNNING": replicas}

    def _processes(self, title):
        found = [p for p in processes.offspring(os.getpid()) if p.name.startswith(title)]
        return sorted(found, key=lambda process: process.pid)


def kill(*pids):
    """End processes without a chance to tidy up."""
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


@contextmanager
def stopped(pid):
    """A process that keeps its connections and does nothing."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)
