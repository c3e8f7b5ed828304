"""What a run writes down while it goes: metrics as lines of JSON, for TensorBoard and for W&B.

Rank 0 alone keeps it. A run that goes on from a checkpoint cuts off what was written after it.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pydantic import Field
from tensorboardX import SummaryWriter

from clipray.config import Config
from clipray.errors import ConfigError
from clipray.training.metrics import METRICS_FILE, Values, read_metrics

BOARD_FOLDER = "tensorboard"


class LogConfig(Config):
    """Where metrics go, besides `metrics.jsonl`."""

    tensorboard: bool = Field(True, description="write event files for TensorBoard")
    wandb: str | None = Field(
        None, description="Weights & Biases project, where the package wandb is installed"
    )
    every_steps: int = Field(
        10, ge=1, description="write metrics after so many steps, and every two seconds"
    )


class Logbook:
    """Appends metrics; `opened` makes one."""

    def __init__(self, lines: Any, board: SummaryWriter | None, wandb: Any) -> None:
        self._lines, self._board, self._wandb = lines, board, wandb

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, config: LogConfig, step: int, run: Config) -> Iterator["Logbook"]:
        """Keep a logbook in a folder.

        Args:
            folder: of the run; what was written there after `step` is cut off.
            config: where to write.
            step: steps that are done.
            run: configuration, for W&B.

        Raises:
            ConfigError: W&B is asked for and not installed.
        """
        wandb = _wandb(config, folder, run)
        board = (
            SummaryWriter(str(folder / BOARD_FOLDER), purge_step=step + 1 if step else None)
            if config.tensorboard
            else None
        )
        path = folder / METRICS_FILE
        _cut(path, step)
        try:
            with path.open("a", encoding="utf-8") as lines:
                yield cls(lines, board, wandb)
        finally:
            if board:
                board.close()
            if wandb:
                wandb.finish()

    def write(self, values: Values) -> None:
        """Write one line, with the time of day in seconds; `step` tells its place."""
        self._lines.write(json.dumps({"time": time.time()} | values) + "\n")
        step = int(values["step"])
        shown = {name: value for name, value in values.items() if name not in _PLACES}
        if self._board:
            for name, value in shown.items():
                self._board.add_scalar(_tag(name), value, step)
        if self._wandb:
            self._wandb.log({_tag(name): value for name, value in shown.items()}, step=step)

    def flush(self) -> None:
        """Let others see what was written."""
        self._lines.flush()
        if self._board:
            self._board.flush()


_PLACES = ("step", "epoch", "time", "order")
_TRAINING = ("loss", "lr", "logit_scale", "samples_per_s", "data_wait", "grad_norm", "skipped",
             "replaced")  # fmt: skip


def _tag(name: str) -> str:
    return f"train/{name}" if name in _TRAINING else f"val/{name}"


def _cut(path: Path, step: int) -> None:
    """Drop lines after a step; a run that was killed may have left half a line."""
    if path.exists():
        kept = [json.dumps(line) for line in read_metrics(path) if line["step"] <= step]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _wandb(config: LogConfig, folder: Path, run: Config) -> Any:
    if config.wandb is None:
        return None
    try:
        wandb = import_module("wandb")
    except ImportError:
        raise ConfigError(
            "log.wandb: the package wandb is not installed: pip install wandb"
        ) from None
    tree = run.model_dump(mode="json")
    return wandb.init(project=config.wandb, name=folder.name, config=tree, resume="allow")
