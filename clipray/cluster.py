"""The one place that starts and stops Ray.

With `RAY_ADDRESS` set, or inside a Ray job, the running cluster is used and left as it is.
Otherwise a local one is started for the duration of a command, on loopback.
"""

import logging
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from threading import Event, current_thread, main_thread
from types import FrameType

import ray
from ray._private import services

from clipray.errors import ConfigError, UnavailableError

ADDRESS = "RAY_ADDRESS"
REACHED_S = 5.0
START = "ConsolePopen"
OBJECT_STORE_BYTES = 256 << 20  # only paths and vectors travel, never pixels

Handler = Callable[[int, FrameType | None], object]

_QUIET = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",  # how soon the end of a worker is noticed
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what later versions do by default
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the commands draw their own
    "RAY_event_stats": "0",  # a fifth of what a process costs while it waits
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # what its C++ side finds remarkable goes to its log files
}
# For a Ray that one command has for itself, without what its processes do for nobody there.
_ALONE = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes the node away
    "RAY_task_events_report_interval_ms": "0",  # there is no dashboard to show them
    "RAY_LOG_MONITOR_MANY_FILES_THRESHOLD": "0",  # logs are not looked for ten times a second
    "LOG_NAME_UPDATE_INTERVAL_S": "60",  # but so often
}


@contextmanager
def session(cpus: int = 2) -> Iterator[None]:
    """Have Ray at hand inside the block.

    Args:
        cpus: logical CPUs that a local cluster has at least.

    Raises:
        ConfigError: `RAY_ADDRESS` is that of a dashboard.
        UnavailableError: nothing answers there.
    """
    if ray.is_initialized():
        yield
        return
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    _start(cpus)
    try:
        with _interrupt_on_terminate():  # after the start, in which Ray sets a handler of its own
            yield
    finally:
        ray.shutdown()


def resources() -> dict[str, float]:
    """What the running cluster has now, such as `CPU` and `GPU`."""
    has: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
    return has


def is_remote() -> bool:
    """Whether commands use a running cluster, which outlives them."""
    return bool(os.environ.get(ADDRESS))


def is_alone() -> bool:
    """Whether the running Ray is one node that a command started, which no other can join."""
    return not is_remote() and len(ray.nodes()) == 1  # type: ignore[no-untyped-call]


def require_answer(address: str) -> None:
    """Refuse an address where no cluster listens; Ray itself would try for many minutes.

    Args:
        address: as `RAY_ADDRESS` has it.

    Raises:
        ConfigError: it is that of a dashboard.
        UnavailableError: nothing answers there.
    """
    if address.startswith(("http://", "https://")):
        told = f"{ADDRESS}={address} is the address of a dashboard; give the head's HOST:6379 here"
        raise ConfigError(told)
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # such as auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S).close()
    except OSError as error:
        raise UnavailableError(
            f"nothing answers at {address} ({error}); start the head, name its address "
            "(HOST:6379), or open that port in between"
        ) from None


def _start(cpus: int) -> None:
    if is_remote():
        require_answer(os.environ[ADDRESS])
        with _stderr_on_failure():
            ray.init(log_to_driver=False, logging_level=logging.ERROR)
        return
    if sys.stderr.isatty():  # it takes seconds, and nothing else is drawn yet
        sys.stderr.write("starting Ray on this machine\n")
    with _interrupt_deferred(), _stderr_on_failure(), _environment(_ALONE), _apart():
        ray.init(
            address="local",
            num_cpus=max(cpus, os.cpu_count() or 1),
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )


@contextmanager
def _environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Set what the user has not, for the processes that start inside the block."""
    ours = wanted.keys() - os.environ.keys()
    os.environ.update({name: wanted[name] for name in ours})
    try:
        yield
    finally:
        for name in ours:
            del os.environ[name]


@contextmanager
def _apart() -> Iterator[None]:
    """Start Ray's processes each in a group of its own.

    What ends a command often ends its whole group, as `timeout` does; without Ray, the command
    could neither write a checkpoint nor end in order. What starts them is an inner name of Ray
    2.60: where a later one has it not, they stay in the group.
    """
    usual = getattr(services, START, None)
    if usual is None or sys.platform != "linux":  # elsewhere Ray finds its processes by that group
        yield
        return
    setattr(services, START, partial(usual, process_group=0))
    try:
        yield
    finally:
        setattr(services, START, usual)


@contextmanager
def _stderr_on_failure() -> Iterator[None]:
    """Hold back what Ray's C++ side says about its own settings; show it when the start fails."""
    sys.stderr.flush()
    held = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(held, said.read())
            raise
        finally:
            os.dup2(held, 2)
            os.close(held)


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C wait until Ray stands: half of it cannot be stopped in order."""
    asked = Event()
    with _handler(signal.SIGINT, lambda number, frame: asked.set()):
        yield
    if asked.is_set():
        ray.shutdown()
        raise KeyboardInterrupt


@contextmanager
def _interrupt_on_terminate() -> Iterator[None]:
    """Let a plain `kill` end a command as Ctrl-C does, so that Ray is stopped as well."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handler(signal.SIGTERM, interrupt):
        yield


@contextmanager
def _handler(number: signal.Signals, handle: Handler) -> Iterator[None]:
    if current_thread() is not main_thread():  # only there can a handler be set
        yield
        return
    previous = signal.signal(number, handle)
    try:
        yield
    finally:
        signal.signal(number, previous)
