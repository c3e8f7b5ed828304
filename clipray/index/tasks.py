"""Workers of an index job as Ray tasks."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import ray

from clipray.errors import plain
from clipray.index.manifest import Placement
from clipray.index.workers import Done

RETRIES = 3  # of a task whose process or node was lost


class RayTasks:
    """One Ray task a call."""

    def __init__(self, root: Path, placement: Placement) -> None:
        self._root, self._placement = root, placement

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        on: Sequence[str | None] | None = None,
    ) -> Iterator[Done]:
        """Number and result of each call, as they end."""
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(function)
        pending = {task.remote(*call): number for number, call in enumerate(calls)}
        while pending:
            (ready,), _ = ray.wait(list(pending), num_returns=1)
            try:
                yield pending.pop(ready), ray.get(ready)
            except ray.exceptions.RayTaskError as error:
                raise plain(error) from None
