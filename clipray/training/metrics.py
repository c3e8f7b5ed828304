"""The metrics of a run: one JSON object a line, written by rank 0, followed by the command.

A file is what a worker on any node and a driver share without a process between them.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any, TextIO

from tqdm import tqdm

POLL_S = 0.5
SPEED_WINDOW = 50  # steps

Values = dict[str, float]


class MetricsWriter:
    """Appends lines; each is flushed, so that a follower sees it at once."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, values: Values) -> None:
        """Write one line, with the time of day in seconds."""
        self._stream.write(json.dumps(values | {"time": time.time()}) + "\n")
        self._stream.flush()


def read_metrics(path: Path) -> list[Values]:
    """All lines of a run, oldest first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def samples_per_s(lines: list[Values], batch_size: int) -> float:
    """Speed from the first step of `lines` to the last; 0 where there are not two."""
    if len(lines) < 2:
        return 0.0
    seconds = lines[-1]["time"] - lines[0]["time"]
    return (lines[-1]["step"] - lines[0]["step"]) * batch_size / max(seconds, 1e-9)


@contextmanager
def followed(path: Path, steps: int, batch_size: int) -> Iterator[None]:
    """Draw a progress bar from the lines that appear in `path` while the block runs."""
    ended = Event()
    with tqdm(total=steps, unit="step", desc="train: starting workers") as bar:
        thread = Thread(target=_follow, args=(path, bar, batch_size, ended), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _follow(path: Path, bar: "tqdm[Any]", batch_size: int, ended: Event) -> None:
    while not path.exists():
        if ended.wait(POLL_S):
            return
    recent: list[Values] = []
    with path.open(encoding="utf-8") as stream:
        last_look = False
        while not last_look:
            last_look = ended.wait(POLL_S)
            lines = [json.loads(line) for line in stream]
            recent = [*recent, *lines][-SPEED_WINDOW:]
            if lines:
                _draw(bar, len(lines), recent[-1], samples_per_s(recent, batch_size))


def _draw(bar: "tqdm[Any]", steps: int, last: Values, speed: float) -> None:
    if not bar.n:  # the time that Ray took to start says nothing about the time left
        bar.set_description("train")
        bar.start_t = bar.last_print_t = time.time()
    bar.set_postfix_str(f"loss {last['loss']:.3f}, {speed:.0f} samples/s", refresh=False)
    bar.update(steps)
