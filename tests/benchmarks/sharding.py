"""What it costs to cut one index into shards: `python -m tests.benchmarks.sharding`.

The same rows in 1, 2, 4 and 8 shards, searched in one process, which merges what they find. More
shards are for more nodes: on one machine each query looks into all of them.
"""

import logging
import platform
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from clipray import __version__
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.search import DIM, Arena, Contestant, K, ours, prepare
from tests.benchmarks.theme import Contest, Pace, keep, parse, parser, spread

log = logging.getLogger(__name__)

METHODS = ("auto", "HNSW32")
RECALL = 0.95

Cut = tuple[str, int]  # method and shards


@dataclass
class Results:
    """By method and shards; queries also by kind, in CPU ms, one figure a round."""

    built: dict[Cut, float] = field(default_factory=dict)
    chosen: dict[Cut, str] = field(default_factory=dict)
    recalls: dict[tuple[Cut, str], float] = field(default_factory=dict)
    queries: dict[tuple[Cut, str], list[float]] = field(default_factory=dict)


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--rows", type=int, default=50_000)
    made.add_argument("--queries", type=int, default=200, help="of each kind")
    made.add_argument("--shards", type=int, nargs="+", default=[1, 2, 4, 8])
    made.add_argument("--methods", nargs="+", default=METHODS)
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    if args.quick:
        args.rows, args.queries, args.shards, args.methods = 1_000, 20, [1, 2], ["HNSW32"]
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
        arena = prepare(Path(scratch), args.rows, args.queries, part=max(1, args.rows // 80))
        cuts = {
            (method, shards): opened.enter_context(closing(started(arena, method, shards)))
            for method in args.methods
            for shards in args.shards
        }
        results = Results()
        for cut, contestant in cuts.items():
            build(arena, cut, contestant, results)
        for number in pace.rounds():
            run(arena, cuts, results)
            log.info("round %d done", number + 1)
    lines = [*header(arena, number + 1), *table(results)]
    keep(args.output, "shards", lines, contests(results))


def started(arena: Arena, method: str, shards: int) -> Contestant:
    """An index that is not built yet."""
    places = [arena.root / "embeddings", arena.root / "queries.npz"]
    index = arena.root / f"{method}-{shards}"
    return ours(f"clipray {method}, {shards} shards", [*places, index, method, shards])


def build(arena: Arena, cut: Cut, contestant: Contestant, results: Results) -> None:
    """Build, tune, and see what is found."""
    answer = contestant.ask(do="build")
    results.built[cut], results.chosen[cut] = answer["cpu_s"], answer["method"]
    for kind in arena.truth:
        found = contestant.search(kind, RECALL)
        results.recalls[cut, kind] = arena.recall(kind, found["rows"])
        results.queries[cut, kind] = []
    log.info("%s: built in %.1f CPU s", contestant.name, answer["cpu_s"])


def run(arena: Arena, cuts: dict[Cut, Contestant], results: Results) -> None:
    """One round."""
    for kind in arena.truth:
        for cut, contestant in cuts.items():
            used = contestant.search(kind, RECALL)["cpu_s"]
            results.queries[cut, kind].append(1e3 * used / arena.queries)


def table(results: Results) -> Iterator[str]:
    """One line a cut and kind of query."""
    yield (
        "| asked for | shards | method | build, CPU s | queries | recall@10 | CPU ms a query, "
        "median | min | max | times one shard |"
    )
    yield "|" + "---|" * 10
    for (cut, kind), values in results.queries.items():
        method, shards = cut
        one = next(v for ((m, _), k), v in results.queries.items() if (m, k) == (method, kind))
        yield (
            f"| {method} | {shards} | {results.chosen[cut]} | {results.built[cut]:.1f} | "
            f"{kind}-like | {results.recalls[cut, kind]:.3f} | {spread(values, '.3f')} | "
            f"{median(values) / median(one):.2f} |"
        )


def contests(results: Results) -> Iterator[Contest]:
    """The most shards against one: a contest with ourselves."""
    for method in dict.fromkeys(method for method, _ in results.built):
        few, *_, many = (shards for held, shards in results.built if held == method)
        for kind in ("image", "text"):
            mine, other = (results.queries[(method, n), kind] for n in (many, few))
            names = (f"clipray {method}, {many} shards", f"the same, {few} shard")
            yield Contest(f"{kind}-like queries", "CPU ms a query", *names, mine, other)


def header(arena: Arena, rounds: int) -> list[str]:
    return [
        f"# Shards, {arena.rows} × {DIM}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), ('numpy', 'pyarrow'))}. "
        f"{machine()}; Python {platform.python_version()}, one thread, one process, no Ray: shards "
        f"are built one after the other, and searched so. k = {K}, {arena.queries} queries of each "
        f"kind one at a time, {rounds} interleaved rounds; tuned to recall@10 "
        f"{RECALL} on queries of its own.",
        "",
    ]


if __name__ == "__main__":
    main()
