"""What a search costs, beside the graphs of others: `python -m tests.benchmarks.search`.

Vectors lie in clusters on the sphere, as CLIP's do; text-like queries are moved by one common
direction, as the modality gap does. Every contestant is a process of its own with one thread; they
search in turn, and what counts is CPU time. A graph's effort (ef) is the smallest that reaches the
recall on these very queries. Ours is what `clipray index tune` chose on queries of its own.
"""

import argparse
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from clipray import __version__
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
GRAPHS = ("hnswlib M=16", "hnswlib M=32", "usearch f32", "usearch f16", "faiss HNSW32")


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500, help="of each kind")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="5,000 rows, no table kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    rows, queries, rounds = (5_000, 50, 1) if args.quick else (args.rows, args.queries, args.rounds)
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as opened:
        arena = prepare(Path(scratch), rows, queries)
        contestants = [opened.enter_context(closing(made)) for made in started(arena)]
        lines = [*header(arena, rounds), *measure(arena, contestants, rounds)]
    print("\n".join(lines))  # noqa: T201
    if not args.quick:
        name = f"search_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
        args.output.mkdir(parents=True, exist_ok=True)
        (args.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def prepare(root: Path, rows: int, queries: int) -> Arena:
    """Draw rows and queries, and find out by brute force what is true."""
    vectors, kinds = draw(rows, queries)
    np.save(root / "rows.npy", vectors)
    np.savez(root / "queries.npz", **kinds)
    cuts = range(0, rows, 10_000)
    parts = [([f"s/{n}" for n in range(a, min(a + 10_000, rows))], vectors[a : a + 10_000])
             for a in cuts]  # fmt: skip
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


def started(arena: Arena) -> Iterator[Contestant]:
    """All contestants."""
    ours, peer = (
        sys.executable,
        environment.peers_with(HERE.with_name("graphs.txt")) / "bin" / "python",
    )
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    queries = arena.root / "queries.npz"
    for method in OURS:
        program = [ours, "-m", "tests.benchmarks.contestants.clipray_index"]
        places = [arena.root / "embeddings", queries, arena.root / method, method]
        yield Contestant(f"clipray {method}", [*program, *places], own)
    for name in GRAPHS:
        line = [peer, HERE / "graphs.py", name, arena.root / "rows.npy", queries]
        yield Contestant(name, line, environment.environment())


def measure(arena: Arena, contestants: list[Contestant], rounds: int) -> Iterator[str]:
    """Tables of building and searching."""
    built = {}
    for contestant in contestants:
        answer = contestant.ask(do="build")
        log.info("%s: built in %.1f CPU s", contestant.name, answer["cpu_s"])
        built[contestant.name] = answer["cpu_s"]
    yield "| build | CPU s | times clipray auto |"
    yield "|---|---|---|"
    first = built[contestants[0].name]
    for name, seconds in built.items():
        yield f"| {name} | {seconds:.1f} | {seconds / first:.1f} |"
    races = [Race(kind, recall, batch) for batch in (False, True) for recall in RECALLS
             for kind in arena.truth]  # fmt: skip
    for race in races:
        yield ""
        yield from run(arena, race, contestants, rounds)


def run(arena: Arena, race: Race, contestants: list[Contestant], rounds: int) -> Iterator[str]:
    """One table: who answers how many queries in a CPU second."""
    efforts = {c.name: effort_for(arena, race, c) for c in contestants}
    speeds: dict[str, list[float]] = {c.name: [] for c in contestants}
    recalls: dict[str, float] = {}
    for _ in range(rounds):
        for contestant in contestants:
            answer = contestant.search(race.kind, efforts[contestant.name], batch=race.batch)
            speeds[contestant.name].append(arena.queries / answer["cpu_s"])
            recalls[contestant.name] = arena.recall(race.kind, answer["rows"])
    how = "all in one batch" if race.batch else "one at a time"
    yield f"**{race.kind}-like queries, recall@{K} ≥ {race.recall}, {how}**"
    yield ""
    yield "| | effort | recall | queries a CPU second, median | min | max | clipray auto is |"
    yield "|---|---|---|---|---|---|---|"
    mine = statistics.median(speeds[contestants[0].name])
    for name, found in speeds.items():
        speed = statistics.median(found)
        short = "" if recalls[name] >= race.recall else " (not reached)"
        yield (
            f"| {name} | {efforts[name]} | {recalls[name]:.3f}{short} | {speed:.0f} | "
            f"{min(found):.0f} | {max(found):.0f} | {mine / speed:.2f}× |"
        )
    log.info("%s done", race)


def effort_for(arena: Arena, race: Race, contestant: Contestant) -> float:
    """The smallest ef that reaches the recall; for us, the recall itself."""
    if contestant.name.startswith("clipray"):
        return race.recall
    for effort in EFFORTS:
        found = contestant.search(race.kind, effort, batch=True)["rows"]
        if arena.recall(race.kind, found) >= race.recall:
            return effort
    return EFFORTS[-1]


def header(arena: Arena, rounds: int) -> list[str]:
    return [
        f"# Search of {arena.rows} × {DIM}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}, Python {platform.python_version()}, {platform.machine()}, one "
        f"thread each; k = {K}, {arena.queries} queries of each kind, {rounds} interleaved rounds. "
        "Efforts of the graphs are ef, chosen on these very queries; ours is the recall that "
        "`clipray index tune` was asked for, which it measures on queries of its own. clipray "
        "returns rows with their keys, exactly scored; the graphs return numbers.",
        "",
    ]


if __name__ == "__main__":
    main()
