"""Workers of an index job as Ray tasks."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path
from typing import Any

import faiss
import ray

from clipray import cluster, nodes, room, storage
from clipray.errors import ConfigError, UnavailableError
from clipray.index.builder import build_segment
from clipray.index.ledger import build_shard
from clipray.index.manifest import IndexFolder, Placement
from clipray.index.workers import Arguments, Done, Function, Here, Workers

TRIES = 3
NOTICE_S = 2.0
HERE_UP_TO = 200_000  # rows; so many are written sooner than Ray has started
BUILDING = (build_segment, build_shard)

log = logging.getLogger(__name__)


@contextmanager
def workers_for(folder: IndexFolder, placement: Placement, rows: int) -> Iterator[Workers]:
    """This process for little work on files that it sees, else Ray tasks."""
    if placement == "shared" and rows <= HERE_UP_TO:
        yield Here(folder.root)
        return
    with cluster.session(cpus=1):
        room.wait()
        yield RayTasks(folder, placement)


@dataclass(frozen=True)
class _Task:
    """What travels to a node.

    Attributes:
        held: whether nodes keep their shards to themselves.
        codecs: Ray's reference to the codec files by name; a node that has no shared folder
            needs them to build.
    """

    function: Function
    root: Path
    arguments: Arguments
    held: bool
    codecs: Any
    threads: int


class RayTasks:
    """One Ray task a call; those that build get a GPU where the cluster has some."""

    def __init__(self, folder: IndexFolder, placement: Placement) -> None:
        self._folder, self._held = folder, placement == "node"

    def run(
        self, function: Function, calls: Sequence[Arguments], on: Sequence[str | None] | None = None
    ) -> Iterator[Done]:
        """Every call, as they end.

        Raises:
            UnavailableError: a node that must run a call is not alive, or calls were lost again
                and again.
        """
        needs, threads = _needs(function), _threads(function, len(calls))
        codecs = ray.put(self._codecs() if self._held and function in BUILDING else {})
        placed = zip(calls, on or repeat(None), self._homes(function), strict=False)
        tasks = [
            nodes.Call(self._task(function, call, codecs, threads), on=node, near=home)
            for call, node, home in placed
        ]
        for done in nodes.run(_perform, tasks, needs):
            yield Done(done.call, done.result, done.node)

    def everywhere(self, function: Function, arguments: Arguments) -> Mapping[str | None, Any]:
        """What the function returns on each node that takes tasks.

        A node that dies meanwhile is left out once Ray has noticed.

        Raises:
            ConfigError: shards are to stay on nodes, of which two go by the same name.
            UnavailableError: nodes died again and again.
        """
        for _ in range(TRIES - 1):
            try:
                return self._everywhere(function, arguments)
            except UnavailableError as error:
                log.info("%s; again", error)
                time.sleep(NOTICE_S)
        return self._everywhere(function, arguments)

    def _everywhere(self, function: Function, arguments: Arguments) -> Mapping[str | None, Any]:
        try:
            names: list[str | None] = [node.name for node in nodes.alive() if node.cpus >= 1]
        except ConfigError:
            if self._held:
                raise
            names = [None]  # of nodes that share the folder any will do
        done = self.run(function, [arguments] * len(names), names)
        return {each.node: each.result for each in done}

    def _homes(self, function: Function) -> Iterator[str | None]:
        """Nodes in turn for shards that will stay there, so that all disks fill alike."""
        if not self._held or function not in BUILDING:
            return repeat(None)
        return cycle([node.name for node in nodes.alive() if node.cpus >= 1])

    def _task(self, function: Function, call: Arguments, codecs: Any, threads: int) -> _Task:
        return _Task(function, self._folder.root, call, self._held, codecs, threads)

    def _codecs(self) -> dict[str, bytes]:
        paths = self._folder.codecs.glob("*.faiss") if self._folder.codecs.is_dir() else ()
        return {path.name: path.read_bytes() for path in paths}


def _perform(task: _Task) -> Any:
    faiss.omp_set_num_threads(task.threads)
    root = nodes.local_root(task.root) if task.held else task.root
    for name, data in ray.get(task.codecs).items():
        path = IndexFolder(root).codecs / name
        storage.make_folder(path.parent)
        storage.create_file(path, data)
    return task.function(root, *task.arguments)


def _needs(function: Function) -> nodes.Needs:
    """One CPU, however many threads compute: the replicas of a service hold some of every node."""
    gpus = min(node.gpus for node in _workers()) if function in BUILDING else 0
    return nodes.Needs(gpus=1 if gpus >= 1 else 0)


def _threads(function: Function, calls: int) -> int:
    """What is there, shared out among the tasks that build."""
    if function not in BUILDING or not calls:
        return 1
    alive = _workers()
    share = sum(node.cpus for node in alive) // calls
    return int(max(1, min(share, *(node.cpus for node in alive))))


def _workers() -> list[nodes.Node]:
    """Nodes that take tasks; a head often has no CPU."""
    return [node for node in nodes.present() if node.cpus >= 1]
