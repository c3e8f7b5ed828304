"""The metrics of a run: lines of JSON, their speed, and the progress bar drawn from them."""

import json
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from tqdm import tqdm

METRICS_FILE = "metrics.jsonl"
SPEED_WINDOW = 50  # steps

_PLACES = ("step", "epoch", "time")

Values = dict[str, float]


def read_metrics(path: Path) -> list[Values]:
    """All lines of a run, oldest first, without one that was cut off."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def samples_per_s(lines: Sequence[Values], batch_size: int) -> float:
    """Speed from the first step of `lines` to the last; 0 where there are not two."""
    if len(lines) < 2:
        return 0.0
    seconds = lines[-1]["time"] - lines[0]["time"]
    return (lines[-1]["step"] - lines[0]["step"]) * batch_size / max(seconds, 1e-9)


def data_wait(lines: Sequence[Values]) -> float:
    """Share of the time from the first step of `lines` to the last that was spent on waiting."""
    if len(lines) < 2:
        return 0.0
    seconds = lines[-1]["time"] - lines[0]["time"]
    return sum(line["waited"] for line in lines[1:]) / max(seconds, 1e-9)


class Progress:
    """A bar over the steps of a run, with loss, speed, data wait, rate and logit scale.

    Args:
        steps: of the whole run.
        batch_size: global batch.
        workers: that share it.
    """

    def __init__(self, steps: int, batch_size: int, workers: int) -> None:
        self._steps, self._batch_size, self._workers = steps, batch_size, workers
        self._recent: deque[Values] = deque(maxlen=SPEED_WINDOW)
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        self._bar = tqdm(total=self._steps, unit="step", desc="train: starting workers")
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def draw(self, lines: Sequence[Values]) -> None:
        """Show new lines; after an interruption the bar goes back to where the run goes on."""
        bar = self._bar
        if bar is None:
            return
        for line in lines:
            if "loss" not in line:
                bar.write(_evaluated(line), file=sys.stderr)
        lines = [line for line in lines if "loss" in line]
        if not lines:
            return
        if not self._recent or lines[0]["step"] <= self._recent[-1]["step"]:
            self._begin(bar, int(lines[0]["step"]) - 1)
        self._recent += lines
        bar.set_postfix_str(self._told(), refresh=False)
        bar.update(int(lines[-1]["step"]) - bar.n)

    def _begin(self, bar: "tqdm[Any]", done: int) -> None:
        """The time that Ray took to start says nothing about the time left."""
        self._recent.clear()
        bar.set_description("train")
        bar.n = bar.initial = done
        bar.start_t = bar.last_print_t = time.time()

    def _told(self) -> str:
        recent = list(self._recent)
        last = recent[-1]
        speed = samples_per_s(recent, self._batch_size) / self._workers
        return (
            f"loss {last['loss']:.3f}, {speed:.0f} samples/s a worker, "
            f"data wait {data_wait(recent):.0%}, lr {last['lr']:.2g}, "
            f"scale {last['logit_scale']:.1f}"
        )


def _evaluated(line: Values) -> str:
    values = [f"{name} {value:.4g}" for name, value in line.items() if name not in _PLACES]
    return f"after epoch {line['epoch'] + 1:.0f}: {', '.join(values)}"
