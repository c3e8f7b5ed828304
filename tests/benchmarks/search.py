"""What a search costs, beside the graphs of others: `python -m tests.benchmarks.search`.

Vectors lie in clusters on the sphere, as CLIP's do; text-like queries are moved by one common
direction, as the modality gap does. Every contestant is a process of its own with one thread; they
search in turn, and what counts is CPU time. A graph's effort (ef) is the smallest that reaches the
recall on these very queries; autofaiss chooses its own. Ours is what `clipray index tune` chose on
queries of its own.
"""

import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from clipray import __version__
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.theme import Contest, Pace, keep, parse, parser, spread
from tests.handmade import write_embeddings
from tests.peers import environment

log = logging.getLogger(__name__)

HERE = Path(__file__).parent / "contestants"
ROOT = Path(__file__).parents[2]
K = 10
DIM = 512
RECALLS = (0.95, 0.99)
EFFORTS = (10, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024)
OURS = ("auto", "HNSW32")
FAISS = "faiss HNSW32"  # needs no environment but ours
PEERS = ("hnswlib M=16", "usearch f16", FAISS, "autofaiss")
THEIRS = ("faiss-cpu", "hnswlib", "usearch", "autofaiss", "numpy")


@dataclass(frozen=True)
class Arena:
    """Files that all contestants share, and what is true.

    Attributes:
        truth: by kind of query, the best row numbers, (m, K).
    """

    root: Path
    rows: int
    truth: dict[str, np.ndarray]

    @property
    def queries(self) -> int:
        """Of each kind."""
        return len(next(iter(self.truth.values())))

    def recall(self, kind: str, found: list[list[int]]) -> float:
        """Mean recall@K."""
        pairs = zip(found, self.truth[kind], strict=True)
        return statistics.mean(len(set(mine) & set(best.tolist())) / K for mine, best in pairs)


class Contestant:
    """A program that builds and searches on demand."""

    def __init__(self, name: str, line: list[object], variables: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            list(map(str, line)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=variables | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )

    def ask(self, **what: Any) -> dict[str, Any]:
        """One command and its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"{self.name} ended"
        return dict(json.loads(answer))

    def search(self, kind: str, effort: float, *, batch: bool = False) -> dict[str, Any]:
        """Row numbers and CPU seconds for all queries of a kind."""
        return self.ask(do="search", kind=kind, effort=effort, batch=batch, k=K)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()


@dataclass(frozen=True)
class Race:
    """All contestants search for one kind of query and one recall."""

    kind: str
    recall: float
    batch: bool

    def __str__(self) -> str:
        how = "all in one batch" if self.batch else "one at a time"
        return f"{self.kind}-like queries, recall@{K} ≥ {self.recall}, {how}"


@dataclass
class Results:
    """By name of the contestant, in CPU seconds and in queries a CPU second.

    Attributes:
        built: once.
        chosen: what a contestant chose by itself.
        efforts: likewise `recalls` and `speeds`, also by race; speeds by round.
    """

    built: dict[str, float] = field(default_factory=dict)
    chosen: dict[str, str] = field(default_factory=dict)
    efforts: dict[tuple[Race, str], float] = field(default_factory=dict)
    recalls: dict[tuple[Race, str], float] = field(default_factory=dict)
    speeds: dict[tuple[Race, str], list[float]] = field(default_factory=dict)


def main() -> None:
    made = parser(__doc__, rounds=5)
    made.add_argument("--rows", type=int, default=100_000)
    made.add_argument("--queries", type=int, default=500, help="of each kind")
    made.add_argument("--peers", nargs="+", default=PEERS, help="of contestants/graphs.py")
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    if args.quick:
        args.rows, args.queries, args.peers = 2_000, 20, (FAISS,)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
        arena = prepare(Path(scratch), args.rows, args.queries)
        contestants = [opened.enter_context(closing(c)) for c in started(arena, args.peers)]
        results = Results()
        build(contestants, results)
        races = [Race(kind, recall, batch) for batch in (False, True) for recall in RECALLS
                 for kind in arena.truth]  # fmt: skip
        choose_efforts(arena, races, contestants, results)
        for number in pace.rounds():
            run(arena, races, contestants, results)
            log.info("round %d done", number + 1)
    lines = [*header(arena, args.peers, number + 1), *report(results)]
    keep(args.output, "search", lines, contests(results))


def prepare(root: Path, rows: int, queries: int, part: int = 10_000) -> Arena:
    """Draw rows and queries, and find out by brute force what is true.

    Args:
        root: where.
        rows: how many.
        queries: of each kind.
        part: rows of a part of the embeddings; an index is cut between them.
    """
    vectors, kinds = draw(rows, queries)
    np.save(root / "rows.npy", vectors)
    np.savez(root / "queries.npz", **kinds)
    parts = [([f"s/{n}" for n in range(a, min(a + part, rows))], vectors[a : a + part])
             for a in range(0, rows, part)]  # fmt: skip
    write_embeddings(root / "embeddings", parts)
    wide = vectors.astype(np.float32)
    truth = {
        kind: np.argsort(-(array @ wide.T), axis=1, kind="stable")[:, :K]
        for kind, array in kinds.items()
    }
    return Arena(root, rows, truth)


def draw(rows: int, count: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows as float16, and image-like and text-like queries, all of unit length."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(max(8, rows // 100), DIM))
    gap = 1.5 * rng.normal(size=DIM)

    def near(count: int) -> np.ndarray:
        return centres[rng.integers(len(centres), size=count)] + rng.normal(size=(count, DIM))

    kinds = {"image": unit(near(count)), "text": unit(near(count) + gap)}
    return unit(near(rows)).astype(np.float16), kinds


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def started(arena: Arena, peers: Sequence[str]) -> Iterator[Contestant]:
    """All contestants."""
    queries = arena.root / "queries.npz"
    for method in OURS:
        places = [arena.root / "embeddings", queries, arena.root / method, method]
        yield ours(f"clipray {method}", places)
    python = python_of(peers)
    for name in peers:
        line = [python, HERE / "graphs.py", name, arena.root / "rows.npy", queries]
        yield Contestant(name, line, environment.environment())


def ours(name: str, arguments: list[object]) -> Contestant:
    """An index of clipray, in a process of its own."""
    program = [sys.executable, "-m", "tests.benchmarks.contestants.clipray_index"]
    return Contestant(name, [*program, *arguments], os.environ | {"PYTHONPATH": str(ROOT)})


def python_of(peers: Sequence[str]) -> Path:
    """Python that has what the peers need; for Faiss alone, our own."""
    if set(peers) <= {FAISS}:
        return Path(sys.executable)
    return environment.peers_with(environment.GRAPHS) / "bin" / "python"


def build(contestants: list[Contestant], results: Results) -> None:
    for contestant in contestants:
        answer = contestant.ask(do="build")
        log.info("%s: built in %.1f CPU s", contestant.name, answer["cpu_s"])
        results.built[contestant.name] = answer["cpu_s"]
        results.chosen[contestant.name] = answer.get("method") or answer.get("chosen") or "–"


def choose_efforts(
    arena: Arena, races: list[Race], contestants: list[Contestant], results: Results
) -> None:
    for race in races:
        for contestant in contestants:
            effort = effort_for(arena, race, contestant)
            answer = contestant.search(race.kind, effort, batch=race.batch)  # ours is tuned here
            results.efforts[race, contestant.name] = effort
            results.recalls[race, contestant.name] = arena.recall(race.kind, answer["rows"])
            results.speeds[race, contestant.name] = []


def run(arena: Arena, races: list[Race], contestants: list[Contestant], results: Results) -> None:
    """One round: every race, every contestant."""
    for race in races:
        for contestant in contestants:
            effort = results.efforts[race, contestant.name]
            answer = contestant.search(race.kind, effort, batch=race.batch)
            speed = arena.queries / max(answer["cpu_s"], 1e-6)
            results.speeds[race, contestant.name].append(speed)


def effort_for(arena: Arena, race: Race, contestant: Contestant) -> float:
    """The smallest ef that reaches the recall; for us, the recall itself."""
    if contestant.name.startswith("clipray") or contestant.name == "autofaiss":
        return race.recall
    for effort in EFFORTS:
        found = contestant.search(race.kind, effort, batch=True)["rows"]
        if arena.recall(race.kind, found) >= race.recall:
            return effort
    return EFFORTS[-1]


def report(results: Results) -> Iterator[str]:
    """Tables of building and searching."""
    yield "| build | method | CPU s | times clipray auto |"
    yield "|---|---|---|---|"
    first, *_ = results.built.values()
    for name, seconds in results.built.items():
        yield f"| {name} | {results.chosen[name]} | {seconds:.1f} | {seconds / first:.1f} |"
    for race in dict.fromkeys(race for race, _ in results.speeds):
        yield from ("", f"**{race}**", "")
        yield from race_table(race, results)


def race_table(race: Race, results: Results) -> Iterator[str]:
    """Who answers how many queries in a CPU second."""
    yield "| | effort | recall | queries a CPU second, median | min | max | clipray auto is |"
    yield "|---|---|---|---|---|---|---|"
    mine, *_ = (speeds for (held, _), speeds in results.speeds.items() if held == race)
    for (held, name), speeds in results.speeds.items():
        if held == race:
            recall = results.recalls[race, name]
            short = "" if recall >= race.recall else " (not reached)"
            effort = "its own" if name == "autofaiss" else results.efforts[race, name]
            times = statistics.median(mine) / statistics.median(speeds)
            yield (
                f"| {name} | {effort} | {recall:.3f}{short} | {spread(speeds, '.0f')} | "
                f"{times:.2f}× |"
            )


def contests(results: Results) -> Iterator[Contest]:
    """`auto` against each of the others."""
    mine, *_ = results.built
    for name, seconds in results.built.items():
        if not name.startswith("clipray"):
            yield Contest("build", "CPU s", mine, name, [results.built[mine]], [seconds])
    for (race, name), speeds in results.speeds.items():
        if not name.startswith("clipray"):
            what = str(race)
            if results.recalls[race, name] < race.recall:
                what += f" (it reached {results.recalls[race, name]:.3f})"
            ours = results.speeds[race, mine]
            yield Contest(what, "queries a CPU s", mine, name, ours, speeds, more=True)


def header(arena: Arena, peers: Sequence[str], rounds: int) -> list[str]:
    told = "Faiss of clipray's environment"
    if set(peers) - {FAISS}:
        told = versions(python_of(peers), THEIRS)
    return [
        f"# Search of {arena.rows} × {DIM}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), ('numpy', 'pyarrow'))}, faiss "
        f"{faiss.__version__}. Peers: {told}. {machine()}; Python {platform.python_version()}, one "
        f"thread each; k = {K}, {arena.queries} queries of each kind, {rounds} interleaved rounds. "
        "Efforts of the graphs are ef, chosen on these very queries; ours is the recall that "
        "`clipray index tune` was asked for, which it measures on queries of its own; autofaiss "
        "chooses index and effort by itself. clipray returns rows with their keys, exactly scored; "
        "the others return numbers.",
        "",
    ]


if __name__ == "__main__":
    main()
