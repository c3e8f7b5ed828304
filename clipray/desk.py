"""Where a run's first rank and the command that started it meet: a small Ray actor.

It lies beside the command, so it needs no folder that both can see. What the lines mean is not
known here.
"""

import logging
from typing import Any, Protocol, cast

import ray
import ray.train
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipray.training.metrics import Values

MOST_SAID = 50  # warnings of one worker


class Desk:
    """Holds what was told until it is fetched, and whether the run is asked to stop."""

    def __init__(self) -> None:
        self._lines: list[Values] = []
        self._said: list[str] = []
        self._stop = False

    def tell(self, lines: list[Values]) -> None:
        """Leave lines."""
        self._lines += lines

    def say(self, text: str) -> None:
        """Leave a word for people."""
        self._said.append(text)

    def stop(self) -> None:
        """Ask the run to end."""
        self._stop = True

    def stop_asked(self) -> bool:
        """Whether the run is asked to end."""
        return self._stop

    def fetch(self) -> tuple[list[Values], list[str]]:
        """Take what was left since the last time."""
        taken = self._lines, self._said
        self._lines, self._said = [], []
        return taken


class DeskHandle(Protocol):
    """As Ray gives it: every method has a `remote`."""

    tell: Any
    say: Any
    stop: Any
    stop_asked: Any
    fetch: Any


def open_desk() -> DeskHandle:
    """Start one on this node."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here}
    return cast("DeskHandle", ray.remote(Desk).options(**options).remote())


class DeskHandler(logging.Handler):
    """Brings what a worker warns of to the desk, where a person sees it."""

    def __init__(self, desk: DeskHandle) -> None:
        super().__init__(logging.WARNING)
        self._desk, self._left = desk, MOST_SAID

    def emit(self, record: logging.LogRecord) -> None:
        """Send one on its way; too many are cut off."""
        self._left -= 1
        if self._left > 0:
            self._desk.say.remote(record.getMessage())
        elif self._left == 0:
            self._desk.say.remote("more warnings of this worker are in Ray's logs alone")


class DeskSignals:
    """The first rank's way to the desk; it never waits for an answer."""

    def __init__(self, desk: DeskHandle) -> None:
        self._desk = desk
        self._asked: Any = None
        self._stop = False

    def tell(self, lines: list[Values]) -> None:
        """Send lines on their way."""
        self._desk.tell.remote(lines)

    def stop_asked(self) -> bool:
        """What the desk answered last; then ask again."""
        if self._asked is None:
            self._asked = self._desk.stop_asked.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            self._stop = ray.get(self._asked)
            self._asked = None
        return self._stop

    def preempted(self) -> bool:
        """Whether Ray says that a node of the run goes away soon."""
        return ray.train.get_preemption_info() is not None
