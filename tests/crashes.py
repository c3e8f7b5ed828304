"""What a crash may leave of an operation on a folder: all the states it can be found in.

`lost_states` cuts the power ahead of each call that reaches the file system, and after the last:
what no fsync has covered may be gone. `killed_states` sends SIGKILL there: what the process had
not handed to the kernel is gone. Both take an operation `op(folder)` and leave the folder they are
given as it is. What the files mean, and which states are good, is for the caller to say.

    for state in lost_states(append, folder, tmp_path / "lost"):
        check(state.folder, state.acknowledged)

Those calls are what `calls` sees. What C code does by itself is seen at the next of them, and an
fsync of C code not at all. No real fsync is made meanwhile, and to `killed_states` it is no step:
a kill finds the same folder before it and after it.
"""

import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from tests.calls import ONE_CALL, followed, place_of, syncs
from tests.careless import without_fsync
from tests.disk import LOSSES, Disk, random_loss

SEEDS = range(4)

# A fork takes one thread along; none of these libraries may wait for another.
LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ARROW_IO_THREADS")
ONE_THREAD = dict.fromkeys(LIBRARIES, "1") | {"JE_ARROW_MALLOC_CONF": "background_thread:false"}

RETURNED = "returned"
MOST_SECONDS = 30  # of one child
KILLED = "buffers"


@dataclass(frozen=True)
class State:
    """A folder after a crash; it is there until the next one is asked for."""

    folder: Path
    step: str  # the call that was not made any more, or `RETURNED`
    loss: str  # what was lost: one of `LOSSES`, with a seed, or `KILLED`
    acknowledged: bool  # whether the operation had returned


def lost_states(op, folder, scratch, seeds=SEEDS) -> Iterator[State]:
    """Run `op` once on a copy and yield what a power cut may leave, each state once."""
    live = _copy(folder.resolve(), scratch.resolve() / "live")
    recorder = _Recorder(live, seeds)
    with recorder.disk, followed(live, recorder.before), syncs(recorder.sync):
        op(live)
        recorder.record(RETURNED, acknowledged=True)
    shutil.rmtree(live)
    for number, (tree, *told) in enumerate(recorder.recipes):
        place = _materialise(tree, scratch / str(number))
        yield State(place, *told)
        shutil.rmtree(place)


def killed_states(reference, folder, scratch, *arguments) -> Iterator[State]:
    """Yield what `kill -9` leaves at each call of an operation, and in the middle of writes.

    Args:
        reference: `module:function`, called with a copy of `folder` and `arguments` in children
            of a process of its own, which has one thread.
        folder: what the operation works on.
        scratch: a folder for the copies.
        arguments: JSON values.
    """
    told = [str(folder.resolve()), str(scratch.resolve()), json.dumps(arguments)]
    command = [sys.executable, "-m", __name__, reference, *told]
    root = Path(__file__).parents[1]
    environment = os.environ | ONE_THREAD
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, env=environment) as helper:
        try:
            for line in helper.stdout:
                place, *rest = json.loads(line)
                yield State(Path(place), *rest)
                shutil.rmtree(place)
        except GeneratorExit:
            helper.kill()
            raise
    if helper.returncode:
        raise RuntimeError(f"{reference}: failed without a crash; its error stands in stderr")


class _Recorder:
    """Collects the trees that a power cut may leave; they are written out when all is over."""

    def __init__(self, root, seeds):
        self.disk = Disk(root)
        self.recipes = []
        self._seeds = seeds
        self._seen = set()
        self._steps = itertools.count()

    def before(self, step):
        self.record(step, acknowledged=False)

    def sync(self, descriptor):
        place = place_of(descriptor)
        with ONE_CALL:
            if place.is_relative_to(self.disk.path):
                self.before(f"fsync {place.relative_to(self.disk.path)}")
                self.disk.sync(descriptor)

    def record(self, step, acknowledged):
        self.disk.observe()
        for loss in self._losses():
            tree = self.disk.tree(loss)
            key = (frozenset(tree.items()), acknowledged)
            if key not in self._seen:
                self._seen.add(key)
                self.recipes.append((tree, step, loss.name, acknowledged))

    def _losses(self):
        number = next(self._steps)
        return [*LOSSES, *(random_loss(seed, number) for seed in self._seeds)]


def _copy(folder, place):
    place.parent.mkdir(parents=True, exist_ok=True)
    return shutil.copytree(folder, place)


def _materialise(tree, root):
    root.mkdir()
    for path, content in tree.items():
        if content is None:
            (root / path).mkdir()
        else:
            (root / path).write_bytes(content)
    return root


def main():
    """Kill children of this process, each one step later, until one ends by itself."""
    reference, folder, scratch, arguments = sys.argv[1:]
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the operation prints is not for the pipe
    op = _warm(reference, json.loads(arguments), folder, Path(scratch) / "warm")
    for number in itertools.count(1):
        place = _copy(folder, Path(scratch) / str(number))
        step = _run_to(number, op, place)
        told.write(json.dumps([str(place), step, KILLED, step == RETURNED]) + "\n")
        told.flush()
        if step == RETURNED:
            return


def _warm(reference, arguments, folder, place):
    """Import the operation and run it once: what is loaded late would be so in every child."""
    module, _, function = reference.partition(":")
    op = partial(_call, getattr(importlib.import_module(module), function), arguments)
    with without_fsync():
        op(_copy(folder, place))
    shutil.rmtree(place)
    return op


def _call(function, arguments, folder):
    return function(folder, *arguments)


def _run_to(number, op, root):
    """Run `op` in a child that dies at its `number`th step; returns which that was."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        _run_and_die(number, op, root, writer)
    os.close(writer)
    with os.fdopen(reader, encoding="utf-8") as stream:
        step = stream.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the operation failed ({status}) before step {number}")
    return step or RETURNED


def _run_and_die(number, op, root, writer):
    steps = itertools.count(1)

    def before(step):
        if next(steps) == number:
            os.write(writer, step.encode())
            os.kill(os.getpid(), signal.SIGKILL)

    # Arrow's pools of threads come back after a fork; should others be missed, it does not hang.
    signal.alarm(MOST_SECONDS)
    status = 1
    try:
        with without_fsync(), followed(root, before):  # the kernel outlives it
            op(root)
        status = 0
    finally:
        if status:
            traceback.print_exc()
        os._exit(status)


if __name__ == "__main__":
    main()
