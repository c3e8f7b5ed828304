"""Workers of an index job as Ray tasks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray

from clipray import cluster
from clipray.errors import plain
from clipray.index.manifest import IndexFolder, Placement
from clipray.index.workers import Done, Here, Workers

RETRIES = 3  # of a task whose process or node was lost
HERE_UP_TO = 200_000  # rows; so many are written sooner than Ray has started


@contextmanager
def workers_for(folder: IndexFolder, placement: Placement, rows: int) -> Iterator[Workers]:
    """This process for little work on files that it sees, else Ray tasks."""
    if placement == "shared" and rows <= HERE_UP_TO:
        yield Here()
        return
    with cluster.session(cpus=1):
        yield RayTasks(folder, placement)


class RayTasks:
    """One Ray task a call."""

    def __init__(self, folder: IndexFolder, placement: Placement) -> None:
        self._folder, self._placement = folder, placement

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
