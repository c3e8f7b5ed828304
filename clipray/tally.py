"""How many samples are through: counted over all encoder actors, and drawn for a person.

What a sample is and who counts it is not known here.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event, Lock, Thread
from typing import Any

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

POLL_S = 0.5
LOG_EVERY_S = 10.0  # where nobody watches, as in the log of a job


class Tally:
    """A sum that many add to; run as an actor where they are processes."""

    def __init__(self) -> None:
        self._count = 0

    def add(self, count: int) -> None:
        """Some more are through."""
        self._count += count

    def total(self) -> int:
        """All that are through."""
        return self._count


class Bar:
    """Samples through, samples a second, time left, and what became of the shards.

    Args:
        samples: how many there will be; None where that is not known, then it is estimated.
        shards: how many shards.
    """

    def __init__(self, samples: int | None, shards: int) -> None:
        self._shards, self._known = shards, samples is not None
        self._done, self._finished, self._rejected = 0, 0, 0
        self._lock = Lock()
        watched = sys.stderr.isatty()
        self._bar: tqdm[Any] = tqdm(
            total=samples,
            unit=" samples",
            desc="embed: starting",
            dynamic_ncols=True,
            mininterval=0.2 if watched else LOG_EVERY_S,
        )

    def running(self, total: int) -> None:
        """So many samples went through an encoder; a shard that is done again counts again."""
        with self._lock:
            limit = self._bar.total
            self._draw(total if limit is None else min(total, int(limit)))

    def finish(self, samples: int, rejected: int) -> None:
        """A shard is finished."""
        with self._lock:
            self._done += 1
            self._finished += samples
            self._rejected += rejected
            if not self._known:
                self._bar.total = round(self._finished * self._shards / self._done)
            told = f"{self._done}/{self._shards} shards, {self._rejected} rejected"
            self._bar.set_postfix_str(told, refresh=False)
            self._draw(self._finished)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self._bar.close()

    def _draw(self, through: int) -> None:
        more = through - int(self._bar.n)
        if more <= 0:
            return
        if not self._bar.n:  # the time that Ray took to start says nothing about the time left
            self._bar.set_description("embed", refresh=False)
            self._bar.start_t = self._bar.last_print_t = time.time() - POLL_S
        self._bar.update(more)


@contextmanager
def drawn(total: Callable[[], int], samples: int | None, shards: int) -> Iterator[Bar]:
    """Draw a bar from what `total` returns while the block runs."""
    ended, bar = Event(), Bar(samples, shards)
    thread = Thread(target=_follow, args=(total, bar, ended), daemon=True)
    thread.start()
    try:
        with logging_redirect_tqdm():  # or a warning would stand in the middle of the bar
            yield bar
    finally:
        ended.set()
        thread.join()
        bar.close()


def _follow(total: Callable[[], int], bar: Bar, ended: Event) -> None:
    while not ended.wait(POLL_S):
        try:
            bar.running(total())
        except Exception:  # noqa: BLE001  a count that is lost must not end the work
            return
