"""A process tree: the CPU time and the memory of all its processes, daemons included.

A process belongs to it by its session, by its parent, or because it did before. What a process
used since the last look is lost when it ends; so look often.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread

LOOK_S = 0.25
TICKS = os.sysconf("SC_CLK_TCK")
MB = 1e6
AREA = re.compile("[0-9a-f]+-[0-9a-f]+ ")
SIZE = re.compile(r"(\w+): +(\d+) kB")


@dataclass(frozen=True, slots=True)
class Process:
    """One line of `/proc/PID/stat`; `ticks` are of user and system time, `began` since boot."""

    pid: int
    parent: int
    session: int
    ticks: int
    began: int


@dataclass(frozen=True, slots=True)
class Memory:
    """MB of a process.

    Attributes:
        resident: shared pages counted whole.
        share: shared pages divided among those that share them (PSS).
        private: pages that no other process has, mapped files included.
        mapped: pages of files in a folder that was asked about, counted whole.
        own: its share of all other pages.
    """

    name: str
    resident: float
    share: float
    private: float
    mapped: float
    own: float


class Tree:
    """A process and all that came of it.

    Args:
        root: started in a session of its own.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._used: dict[tuple[int, int], int] = {}
        self._lock = Lock()

    def cpu_s(self) -> float:
        """CPU seconds so far, with those of processes that have ended."""
        with self._lock:
            self._used |= {(process.pid, process.began): process.ticks for process in self.live()}
            return sum(self._used.values()) / TICKS

    def live(self) -> list[Process]:
        """Its processes."""
        every = list(processes())
        inside = {p.pid for p in every if p.session == self._root or (p.pid, p.began) in self._used}
        while more := {p.pid for p in every if p.parent in inside} - inside:
            inside |= more
        return [process for process in every if process.pid in inside]

    def memory(self, folder: Path) -> list[Memory]:
        """Of each of its processes, the largest first."""
        found = [read_memory(process.pid, folder) for process in self.live()]
        return sorted(filter(None, found), key=lambda memory: -memory.share)


class Watch:
    """Looks at a tree again and again, so that little is lost of processes that end."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree
        self._ended = Event()
        self._thread = Thread(target=self._look)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._tree.cpu_s()


def processes() -> Iterator[Process]:
    """All of this machine, zombies included."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            parent, session = int(fields[1]), int(fields[3])
            ticks = int(fields[11]) + int(fields[12])
            yield Process(int(entry.name), parent, session, ticks, int(fields[19]))


def read_memory(pid: int, folder: Path) -> Memory | None:
    """Of one process, if it is still there."""
    home = Path("/proc") / str(pid)
    try:
        name = (home / "cmdline").read_text(errors="replace").replace("\0", " ").strip()
        lines = (home / "smaps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    every, below = Counter[str](), Counter[str]()
    inside = False
    for line in lines:
        if AREA.match(line):
            inside = str(folder) in line
        elif found := SIZE.match(line):
            every[found[1]] += int(found[2])
            below[found[1]] += int(found[2]) if inside else 0
    mb = {kind: 1024 * size / MB for kind, size in every.items()}
    mapped, own = (1024 * size / MB for size in (below["Rss"], every["Pss"] - below["Pss"]))
    private = mb["Private_Clean"] + mb["Private_Dirty"]
    return Memory(name, mb["Rss"], mb["Pss"], private, mapped, own)
