"""Commands as processes of their own: started in a session, found there, and reaped.

Ray starts its processes in groups of their own, but not in sessions.
"""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    pid: int
    name: str
    memory_mb: float


def start(arguments, **options):
    """Run a clipray command in a session of its own."""
    command = [sys.executable, "-m", "clipray.cli", *map(str, arguments)]
    return subprocess.Popen(command, start_new_session=True, **options)


def start_silent(arguments):
    return start(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_script(script, log, seconds, **options):
    """A shell script to its end, and of all that it started; its exit code, and what was said."""
    with log.open("wb") as said:
        process = subprocess.Popen(
            ["bash", "-x", script], stdin=subprocess.DEVNULL, stdout=said,
            stderr=subprocess.STDOUT, start_new_session=True, **options,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        finally:
            reap(process.pid)
    return code, log.read_text(encoding="utf-8", errors="replace")


def of_session(session):
    """Live processes of a session."""
    return _live(3, session)


def children(parent):
    """Live processes that a process has started."""
    return _live(1, parent)


def offspring(parent):
    """Live processes that a process has started, or that those have, and so on."""
    started = children(parent)
    return started + [below for process in started for below in offspring(process.pid)]


def reap(session):
    """What a killed driver leaves ends by itself; do not wait for it."""
    kill(of_session(session))


def kill(processes):
    """End them, those that are still there, without a chance to tidy up."""
    for process in processes:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _live(field, value):
    found = []
    for entry in Path("/proc").iterdir():
        try:
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
            if fields[0] == "Z" or fields[field] != str(value):
                continue
            name = (entry / "cmdline").read_text().replace("\0", " ")
            found.append(Process(int(entry.name), name, _memory_mb(entry)))
        except (OSError, IndexError):
            continue
    return found


def _memory_mb(entry):
    """What it has allocated; pages of mapped libraries come and go as the machine likes."""
    lines = (entry / "status").read_text().splitlines()
    held = next((line for line in lines if line.startswith("RssAnon")), "RssAnon: 0 kB")
    return int(held.split()[1]) / 1024
