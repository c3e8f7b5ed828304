"""What costs become with ten and a hundred times the rows: `python -m tests.benchmarks.growth`.

Building, appending, searching and the disk, of an index of clipray by method, and of a plain Faiss
graph beside it. A slope is that of log cost over log rows, by least squares: 1 is in proportion,
0 is not at all. Each index is a process of its own with one thread, and without Ray, whose start
would hide what grows.
"""

import logging
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import numpy as np

from clipray import __version__
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.search import (
    DIM,
    FAISS,
    HERE,
    Arena,
    Contestant,
    Race,
    draw,
    effort_for,
    ours,
    prepare,
)
from tests.benchmarks.theme import Contest, Pace, keep, parse, parser, spread
from tests.handmade import write_embeddings
from tests.peers import environment

log = logging.getLogger(__name__)

METHODS = ("auto", "HNSW32", "Flat")
COSTS = {
    "build": "CPU s",
    "append": "CPU s",
    "text-like query": "CPU ms",
    "disk": "MB",
}
RECALL = 0.95
SHARE = 0.01  # of the rows are appended


@dataclass(frozen=True)
class Size:
    """So many rows, and more to append, in a folder."""

    arena: Arena
    appended: int

    @property
    def more(self) -> Path:
        """Embeddings to append."""
        return self.arena.root / "more"


@dataclass
class Results:
    """Figures by contestant, cost and rows, one a round; and what a method came to."""

    costs: dict[tuple[str, str, int], list[float]] = field(default_factory=dict)
    methods: dict[tuple[str, int], str] = field(default_factory=dict)
    recalls: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, who: str, cost: str, rows: int, value: float) -> None:
        self.costs.setdefault((who, cost, rows), []).append(value)

    def medians(self, who: str, cost: str) -> dict[int, float]:
        """By rows."""
        return {n: median(v) for (a, b, n), v in self.costs.items() if (a, b) == (who, cost)}

    def slope(self, who: str, cost: str) -> float:
        """Of log cost over log rows."""
        found = {rows: value for rows, value in self.medians(who, cost).items() if value > 0}
        return float(np.polyfit(np.log(list(found)), np.log(list(found.values())), 1)[0])


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--rows", type=int, nargs="+", default=[2_000, 20_000, 200_000])
    made.add_argument("--queries", type=int, default=200)
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    if args.quick:
        args.rows, args.queries = [300, 1_200], 20
    results = Results()
    with tempfile.TemporaryDirectory() as scratch:
        sizes = [prepared(Path(scratch) / str(rows), rows, args.queries) for rows in args.rows]
        for number in pace.rounds():
            for size in sizes:
                run(size, number, results)
            log.info("round %d done", number + 1)
    lines = [*header(args.rows, args.queries, number + 1), *report(results)]
    keep(args.output, "growth", lines, contests(results))


def prepared(root: Path, rows: int, queries: int) -> Size:
    """Rows, queries, and further rows with keys of their own."""
    root.mkdir(parents=True)
    arena = prepare(root, rows, queries)
    count = max(10, round(SHARE * rows))
    vectors, _ = draw(count, 1)
    keys = [f"more/{row}" for row in range(count)]
    write_embeddings(root / "more", [(keys, vectors)])
    return Size(arena, count)


def run(size: Size, number: int, results: Results) -> None:
    """Each method once over so many rows, then Faiss."""
    root = size.arena.root
    queries = root / "queries.npz"
    for method in METHODS:
        places = [root / "embeddings", queries, root / f"{method}-{number}", method]
        with closing(ours(f"clipray {method}", places)) as contestant:
            measure(size, contestant, results)
            answer = contestant.ask(do="append", embeddings=str(size.more))
            results.add(contestant.name, "append", size.arena.rows, answer["cpu_s"])
    line = [sys.executable, HERE / "graphs.py", FAISS, root / "rows.npy", queries]
    with closing(Contestant(FAISS, line, environment.environment())) as contestant:
        measure(size, contestant, results)


def measure(size: Size, contestant: Contestant, results: Results) -> None:
    """Build and search."""
    rows, name = size.arena.rows, contestant.name
    built = contestant.ask(do="build")
    results.add(name, "build", rows, built["cpu_s"])
    results.methods[name, rows] = built.get("method", "HNSW32")
    if "disk_mb" in built:
        results.add(name, "disk", rows, built["disk_mb"])
    effort = effort_for(size.arena, Race("text", RECALL, batch=False), contestant)
    contestant.search("text", effort)  # its pages are read, and ours is tuned
    found = contestant.search("text", effort)
    results.recalls[name, rows] = size.arena.recall("text", found["rows"])
    results.add(name, "text-like query", rows, 1e3 * found["cpu_s"] / size.arena.queries)


def report(results: Results) -> Iterator[str]:
    """One table a cost."""
    for cost, unit in COSTS.items():
        yield f"## {cost}, {unit}"
        yield ""
        yield "| index | rows | method | recall@10 | median | min | max | slope |"
        yield "|---|---|---|---|---|---|---|---|"
        for (name, held, rows), values in sorted(results.costs.items(), key=lambda each: each[0]):
            if held == cost:
                yield (
                    f"| {name} | {rows} | {results.methods[name, rows]} | "
                    f"{results.recalls[name, rows]:.3f} | {spread(values, '.3g')} | "
                    f"{results.slope(name, cost):.2f} |"
                )
        yield ""


def contests(results: Results) -> Iterator[Contest]:
    """`auto` against Faiss at the most rows, and their slopes."""
    most = max(rows for _, _, rows in results.costs)
    for cost in ("build", "text-like query"):
        mine, other = (results.costs[name, cost, most] for name in ("clipray auto", FAISS))
        what = f"{cost}, {most} rows"
        yield Contest(what, COSTS[cost], "clipray auto", FAISS, mine, other)


def header(rows: list[int], queries: int, rounds: int) -> list[str]:
    return [
        f"# Cost growth, {' / '.join(map(str, rows))} × {DIM}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), ('numpy', 'pyarrow'))}. "
        f"{machine()}; Python {platform.python_version()}, one thread each, in one process and "
        f"without Ray. Unit vectors in clusters of about 100; {queries} text-like queries one at a "
        f"time, tuned to recall@10 {RECALL} on queries of its own (clipray) or on these very ones "
        f"(Faiss); {SHARE:.0%} of the rows, at least 10, are appended with new keys; {rounds} "
        "rounds. The disk holds vectors in float16, rows and the index; Faiss's graph in memory "
        "is not counted there. `auto` may choose another method where rows are more: its slope "
        "then runs over two methods. Building reads, checks, hashes and fsyncs, Faiss's does not.",
        "",
    ]


if __name__ == "__main__":
    main()
