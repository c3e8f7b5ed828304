"""Where a run's first rank and the command that started it meet: in the keys of Ray's own store.

So it needs no folder that both can see, and no process of its own. What the lines mean is not known
here.
"""

import json
import logging
import secrets
import time
from dataclasses import dataclass, field

import ray.train
from ray.experimental import internal_kv as kv

from clipray.training.metrics import Values

NAMESPACE = b"clipray"
MOST_SAID = 50  # warnings of one worker
ASK_S = 0.5  # between questions about the end


@dataclass(frozen=True, slots=True)
class Desk:
    """Holds what was told until it is fetched, and whether the run is asked to stop.

    It can be sent to every process of the cluster. The command that opened it closes it.
    """

    name: str = field(default_factory=lambda: f"run-{secrets.token_hex(16)}")

    def tell(self, lines: list[Values]) -> None:
        """Leave lines."""
        self._put(lines)

    def say(self, text: str) -> None:
        """Leave a word for people."""
        self._put(text)

    def fetch(self) -> tuple[list[Values], list[str]]:
        """Take what was left since the last time, in its order."""
        lines: list[Values] = []
        said: list[str] = []
        for key in sorted(kv._internal_kv_list(self._key("left"), namespace=NAMESPACE)):
            left = json.loads(kv._internal_kv_get(key, namespace=NAMESPACE))
            kv._internal_kv_del(key, namespace=NAMESPACE)
            if isinstance(left, str):
                said.append(left)
            else:
                lines += left
        return lines, said

    def stop(self) -> None:
        """Ask the run to end."""
        kv._internal_kv_put(self._key("stop"), b"", namespace=NAMESPACE)

    def stop_asked(self) -> bool:
        """Whether the run is asked to end."""
        asked: bool = kv._internal_kv_exists(self._key("stop"), namespace=NAMESPACE)
        return asked

    def close(self) -> None:
        """Remove all that is left."""
        kv._internal_kv_del(self._key(""), del_by_prefix=True, namespace=NAMESPACE)

    def _put(self, left: list[Values] | str) -> None:
        key = self._key(f"left/{time.time_ns():020}-{secrets.token_hex(4)}")
        kv._internal_kv_put(key, json.dumps(left), namespace=NAMESPACE)

    def _key(self, part: str) -> str:
        return f"{self.name}/{part}"


class DeskHandler(logging.Handler):
    """Brings what a worker warns of to the desk, where a person sees it."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(logging.WARNING)
        self._desk, self._left = desk, MOST_SAID

    def emit(self, record: logging.LogRecord) -> None:
        """Leave one; too many are cut off, and none is worth the end of its worker."""
        self._left -= 1
        try:
            if self._left > 0:
                self._desk.say(record.getMessage())
            elif self._left == 0:
                self._desk.say("more warnings of this worker are in Ray's logs alone")
        except Exception:  # noqa: BLE001  of Ray, where its store is out of reach
            self.handleError(record)


class DeskSignals:
    """The first rank's way to the desk.

    Args:
        desk: of the run.
        alone: whether no node of the run can go away by itself.
    """

    def __init__(self, desk: Desk, *, alone: bool) -> None:
        self._desk, self._alone = desk, alone
        self._asked_at = -ASK_S
        self._stop = False

    def tell(self, lines: list[Values]) -> None:
        """Leave lines."""
        self._desk.tell(lines)

    def stop_asked(self) -> bool:
        """What the desk answered last; it is not asked at every step."""
        now = time.monotonic()
        if now - self._asked_at >= ASK_S:
            self._asked_at, self._stop = now, self._desk.stop_asked()
        return self._stop

    def preempted(self) -> bool:
        """Whether Ray says that a node of the run goes away soon."""
        return not self._alone and ray.train.get_preemption_info() is not None
