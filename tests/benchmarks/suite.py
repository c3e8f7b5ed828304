"""`make bench`: all themes, one after the other, each a process with a share of the time.

A theme that fails, or is not done in one and a half times its share, does not stop the others; the
exit code is 1 then. The environments of the peers are made first, and do not count.
"""

import argparse
import logging
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.summary import Outcome, summarize
from tests.benchmarks.theme import RESULTS
from tests.peers import environment

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
PATIENCE = 1.5  # times its share, then a theme is ended
QUICK_S = 300  # for a theme of a quick run, however busy the machine


@dataclass(frozen=True)
class Theme:
    """A program of this folder.

    Attributes:
        name: of its tables.
        module: that is run.
        minutes: its share of an hour, about.
        rounds_from: share of that after which its last round must have ended.
    """

    name: str
    module: str
    minutes: float
    rounds_from: float = 0.9


THEMES = {
    theme.name: theme
    for theme in (
        Theme("search", "search", 10),
        Theme("shards", "sharding", 5),
        Theme("growth", "growth", 8),
        Theme("embedding", "embedding", 11),
        Theme("first_answer", "first_answer", 6),
        Theme("serving", "serving", 9),
        Theme("training", "training", 11),
    )
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the themes; 0 when all went well."""
    args = parsed(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    if not args.quick:
        environment.peers_with(environment.GRAPHS)
        environment.databases()
    output = args.output or RESULTS
    output.mkdir(parents=True, exist_ok=True)
    at_once = 2 if args.quick else 1  # figures of a quick run are not looked at
    deadline = time.monotonic() + 60 * args.minutes
    with ThreadPoolExecutor(at_once) as pool:
        run = lambda name: measured(name, args, output, deadline)  # noqa: E731
        outcomes = list(pool.map(run, args.themes))
    log.info("%s", summarize(output, outcomes))
    return int(any(outcome.error for outcome in outcomes))


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; a quick run says where to."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--themes", nargs="+", choices=THEMES, default=list(THEMES))
    parser.add_argument("--minutes", type=float, default=60, help="of all themes")
    parser.add_argument("--quick", action="store_true", help="tiny, no peers, two at once")
    parser.add_argument("--output", type=Path, help=f"folder of the tables; {RESULTS.name}/ here")
    args = parser.parse_args(arguments)
    if args.quick and args.output is None:
        parser.error("--quick: expected --output, as its figures do not belong in results/")
    return args


def share_of(name: str, themes: Sequence[str], left: float) -> float:
    """Minutes of a theme; what those before it did not need is for all that come."""
    coming = themes[themes.index(name) :]
    return THEMES[name].minutes * left / sum(THEMES[each].minutes for each in coming)


def measured(name: str, args: argparse.Namespace, output: Path, deadline: float) -> Outcome:
    """Run one theme to its end, or end it."""
    theme = THEMES[name]
    share = share_of(name, args.themes, max(0.1, (deadline - time.monotonic()) / 60))
    limit = QUICK_S if args.quick else PATIENCE * 60 * share
    line = [sys.executable, "-m", f"tests.benchmarks.{theme.module}", "--output", str(output)]
    line += ["--quick"] if args.quick else ["--minutes", f"{theme.rounds_from * share:.2f}"]
    began = time.monotonic()
    error = run(line, output / f"{theme.name}.log", limit)
    seconds = time.monotonic() - began
    log.info("%s: %s after %.0f s", theme.name, error or "done", seconds)
    return Outcome(theme.name, seconds, share, error)


def run(line: list[str], told: Path, limit: float) -> str:
    """What went wrong, or nothing; what it says is kept only then."""
    with told.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            line, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=out,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            code = process.wait(limit)
        except subprocess.TimeoutExpired:
            return f"not done in {limit:.0f} s"
        finally:
            stop(process)
    if code == 0:
        told.unlink()
        return ""
    said = told.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"exit {code}, {told.name}: {said[-1] if said else 'silent'}"


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a theme that is still there to end, and its contestants with it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
