"""What a command costs: CPU seconds of its whole process tree, daemons of it included.

Every process of the command's session is looked at many times a second, and the last value of
each is summed. What a parent never waits for (Ray's daemons) is counted like any other; a process
that ends loses what it used since the last look.
"""

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

LOOK_S = 0.05
GRACE_S = 20
TICKS = os.sysconf("SC_CLK_TCK")


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
    used: dict[tuple[int, str], int] = {}
    began = time.monotonic()
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            line, env=env, cwd=cwd, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        while not _ended(process.pid):
            used |= _ticks(process.pid)
            time.sleep(LOOK_S)
        used |= _ticks(process.pid)
        wall = time.monotonic() - began
        code = process.wait()
    _let_end(process.pid, used)
    if code:
        end = log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(line)}: exit {code}\n{end}")
    return Cost(sum(used.values()) / TICKS, wall)


def _ended(pid: int) -> bool:
    """Whether it has ended; it is left unreaped, so that its times can still be read."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _let_end(session: int, used: dict[tuple[int, str], int]) -> None:
    deadline = time.monotonic() + GRACE_S
    while (left := _ticks(session)) and time.monotonic() < deadline:
        used |= left
        time.sleep(LOOK_S)


def _ticks(session: int) -> dict[tuple[int, str], int]:
    """CPU ticks of every process of a session, by number and time of its start."""
    found: dict[tuple[int, str], int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            fields = _stat(entry)
            if len(fields) > 19 and fields[3] == str(session):
                found[int(entry.name), fields[19]] = int(fields[11]) + int(fields[12])
    return found


def _stat(entry: Path) -> list[str]:
    try:
        return (entry / "stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return []
