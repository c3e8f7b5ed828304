"""What a command costs: CPU seconds of its whole process tree, daemons of it included.

Every process is looked at many times a second, and the last value of each is summed. What a parent
never waits for (Ray's daemons) is counted like any other; a process that ends loses what it used
since the last look.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.tree import Tree

LOOK_S = 0.05
GRACE_S = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU and wall seconds of one command."""

    cpu_s: float
    wall_s: float


def cost(line: Sequence[str], env: Mapping[str, str], cwd: Path, log: Path) -> Cost:
    """Run a command to its end; its output goes to `log`.

    Raises:
        RuntimeError: when it fails.
    """
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            line, env=env, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        tree = Tree(process.pid)
        try:
            while not _ended(process.pid):
                tree.cpu_s()
                time.sleep(LOOK_S)
        except BaseException:
            process.terminate()  # in a session of its own, it hears no Ctrl-C
            raise
        tree.cpu_s()
        wall = time.monotonic() - began
        code = process.wait()
    _let_end(tree)
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(line)}: exit {code}\n{end}")
    return Cost(tree.cpu_s(), wall)


def _ended(pid: int) -> bool:
    """Whether it has ended; it is left unreaped, so that its times can still be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _let_end(tree: Tree) -> None:
    deadline = time.monotonic() + GRACE_S
    while tree.live() and time.monotonic() < deadline:
        tree.cpu_s()
        time.sleep(LOOK_S)
