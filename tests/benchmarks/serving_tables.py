"""What the serving benchmark found, and the tables that say it."""

import platform
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import faiss

from clipray import __version__
from tests.benchmarks.load import Window
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.search import DIM, K
from tests.benchmarks.served import KIND, MODEL, RECALL, SHARDS, Served
from tests.benchmarks.theme import Contest
from tests.benchmarks.tree import Memory
from tests.peers import environment

CONCURRENCIES = (1, 32)
NEW, REPEATED = "new", "repeated"
ALONE = "encoder alone, in process"
OURS = ("ray", "uvicorn", "starlette", "torch", "numpy")
DATABASES = ("lancedb", "chromadb", "uvicorn", "starlette", "numpy")
THEIRS = ("clip-retrieval", "flask", "werkzeug", "faiss-cpu", "torch", "numpy")
FIRST = "clipray, 4 groups"
IDLE_BAR = 0.15  # cores
OWN_BAR_MB = 250


@dataclass(frozen=True)
class Run:
    """Some seconds of load on one service, and the CPU seconds of its process tree."""

    window: Window
    cpu_s: float

    @property
    def ms(self) -> float:
        """CPU milliseconds of the service, a query."""
        return 1e3 * self.cpu_s / self.window.replies

    @property
    def load_ms(self) -> float:
        """CPU milliseconds of the process that makes the load, a query."""
        return 1e3 * self.window.cpu_s / self.window.replies

    @property
    def qps(self) -> float:
        """Queries in a second of the clock."""
        return self.window.replies / self.window.seconds


@dataclass
class Results:
    """By name of the service.

    Attributes:
        vectors: runs, also by concurrency.
        texts: runs, also by kind of text and concurrency.
        idle: cores.
    """

    vectors: dict[tuple[str, int], list[Run]] = field(default_factory=lambda: defaultdict(list))
    texts: dict[tuple[str, str, int], list[Run]] = field(default_factory=lambda: defaultdict(list))
    recall: dict[str, float] = field(default_factory=dict)
    idle: dict[str, float] = field(default_factory=dict)
    start_s: dict[str, float] = field(default_factory=dict)
    memory: dict[str, list[Memory]] = field(default_factory=dict)


def report(content: Served, results: Results, seconds: float) -> list[str]:
    """All tables."""
    return [
        *header(content, results, seconds),
        *vector_table(results),
        *standing_table(results),
        *process_table(results),
        *text_table(results),
    ]


def vector_table(results: Results) -> Iterator[str]:
    yield "## Queries by vector"
    yield ""
    yield (
        f"| at once | service | CPU ms a query, median | min | max | times {FIRST} | queries a "
        f"second | p50 ms | p95 ms | recall@{K} | failed | CPU ms of the load |"
    )
    yield "|" + "---|" * 12
    for (name, concurrency), runs in sorted(results.vectors.items(), key=lambda item: item[0][1]):
        yield (
            f"| {concurrency} | {name} | {cells(runs)} | "
            f"{ratio(runs, results.vectors.get((FIRST, concurrency)))} | {clock(runs)} | "
            f"{results.recall[name]:.3f} | {failures(runs)} | "
            f"{median(run.load_ms for run in runs):.3f} |"
        )


def text_table(results: Results) -> Iterator[str]:
    yield ""
    yield "## Queries by text"
    yield ""
    yield (
        "New texts are never sent twice, repeated ones are 8 in turn. Encoding alone takes as many "
        "texts in one batch as the services have at once; its latency is that of a batch."
    )
    yield ""
    yield (
        "| at once | texts | service | CPU ms a query, median | min | max | times encoding alone | "
        "queries a second | p50 ms | p95 ms | failed |"
    )
    yield "|" + "---|" * 11
    for (name, kind, concurrency), runs in sorted(results.texts.items(), key=order):
        yield (
            f"| {concurrency} | {kind} | {name} | {cells(runs)} | "
            f"{ratio(runs, results.texts.get((ALONE, NEW, concurrency)))} | {clock(runs)} | "
            f"{failures(runs)} |"
        )


def order(item: tuple[tuple[str, str, int], list[Run]]) -> tuple[int, str, bool]:
    """By concurrency and kind; encoding alone comes first."""
    (name, kind, concurrency), _ = item
    return concurrency, kind, name != ALONE


def standing_table(results: Results) -> Iterator[str]:
    """What a service takes before anybody asks, and its memory after all the load."""
    yield ""
    yield f"## Standing by (idle bar of clipray: {IDLE_BAR} cores)"
    yield ""
    yield "| service | started in s | idle cores | processes | PSS MB | RSS MB | private MB |"
    yield "|---|---|---|---|---|---|---|"
    for name, processes in results.memory.items():
        share, resident, private = (
            sum(getattr(memory, kind) for memory in processes)
            for kind in ("share", "resident", "private")
        )
        yield (
            f"| {name} | {results.start_s[name]:.1f} | {results.idle[name]:.3f} | "
            f"{len(processes)} | {share:.0f} | {resident:.0f} | {private:.0f} |"
        )


def process_table(results: Results) -> Iterator[str]:
    """Each process of clipray."""
    for name, processes in results.memory.items():
        if not name.startswith("clipray"):
            continue
        yield ""
        yield f"**Processes of {name}** (bar with shards: {OWN_BAR_MB} MB beside the index)"
        yield ""
        yield "| process | PSS MB beside the index | index mapped, MB | private MB | RSS MB |"
        yield "|---|---|---|---|---|"
        for memory in processes:
            yield (
                f"| {short(memory.name)} | {memory.own:.0f} | {memory.mapped:.0f} | "
                f"{memory.private:.0f} | {memory.resident:.0f} |"
            )


def cells(runs: list[Run]) -> str:
    """CPU milliseconds: median, least, most."""
    ms = [run.ms for run in runs]
    return f"{median(ms):.2f} | {min(ms):.2f} | {max(ms):.2f}"


def clock(runs: list[Run]) -> str:
    """Medians of what depends on the clock."""
    p50, p95 = (median(getattr(run.window, name) for run in runs) for name in ("p50_ms", "p95_ms"))
    return f"{median(run.qps for run in runs):.0f} | {p50:.1f} | {p95:.1f}"


def ratio(runs: list[Run], first: list[Run] | None) -> str:
    """Of the medians, and the spread within rounds."""
    if not first:
        return "–"
    pairs = sorted(run.ms / other.ms for run, other in zip(runs, first, strict=True))
    middle = median(run.ms for run in runs) / median(run.ms for run in first)
    return f"{middle:.2f} ({pairs[0]:.2f} to {pairs[-1]:.2f})"


def failures(runs: list[Run]) -> str:
    """How many replies of how many."""
    failed = sum(sum(run.window.failed.values()) for run in runs)
    return f"{failed} of {sum(run.window.replies for run in runs)}"


def short(name: str) -> str:
    """The part of a command line that tells a process from others."""
    first, *rest = name.split()
    if first.startswith("ray::"):
        return first.removeprefix("ray::")
    if not Path(first).name.startswith("python"):
        return Path(first).name
    return Path(next((word for word in rest if not word.startswith("-")), first)).name


def contests(results: Results) -> Iterator[Contest]:
    """Each service of others beside ours, and the text queries of those that encode."""
    for (name, concurrency), runs in results.vectors.items():
        ours = results.vectors.get((FIRST, concurrency))
        if ours and not name.startswith("clipray"):
            what = f"query by vector, {concurrency} at once"
            yield contest(what, FIRST, name, ours, runs)
            speeds = [[run.qps for run in held] for held in (ours, runs)]
            yield Contest(what, "queries a second", FIRST, name, *speeds, more=True)
    for (name, kind, concurrency), runs in results.texts.items():
        ours = results.texts.get((FIRST, kind, concurrency))
        if ours and name not in {FIRST, ALONE}:
            yield contest(f"{kind} text, {concurrency} at once", FIRST, name, ours, runs)


def contest(what: str, first: str, name: str, ours: list[Run], runs: list[Run]) -> Contest:
    """In CPU time."""
    mine, others = ([run.ms for run in held] for held in (ours, runs))
    return Contest(what, "CPU ms a query", first, name, mine, others)


def header(content: Served, results: Results, seconds: float) -> list[str]:
    rounds = min(map(len, results.vectors.values()))
    return [
        f"# Serving {content.rows} × {DIM}, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), OURS)}, faiss "
        f"{faiss.__version__}. {others(content, results)}The plain server runs in clipray's "
        "environment.",
        "",
        f"{machine()}; Python {platform.python_version()}. {rounds} interleaved rounds of "
        f"{seconds:g} s, all services up. HNSW32 over unit vectors in clusters; clipray has "
        f"{SHARDS} shards of float16 in {content.index_mb:.0f} MB, tuned to recall@{K} {RECALL} on "
        f"queries of its own; the others have one graph of float32, efSearch {content.effort}, the "
        f"smallest that reaches it on these queries. {len(content.queries)} {KIND}-like queries, "
        f"k = {K}; replies carry keys, scores and captions. Model: {MODEL}, random weights, fp32. "
        "All but clipray run with OMP_NUM_THREADS=1; clip-retrieval reads its rows from parquet, "
        "as by default, or from arrow, and nothing of it is replaced: its model is loaded from a "
        "weights file. CPU is that of a service's whole process tree, user and system, background "
        "work included.",
        "",
    ]


def others(content: Served, results: Results) -> str:
    """Versions of the peers that took part, and how the databases are set."""
    told = ""
    if any("clip-retrieval" in name for name in results.recall):
        python = environment.peers() / "bin" / "python"
        told += f"clip-retrieval: {versions(python, THEIRS)}. "
    if {"LanceDB", "Chroma"} & set(results.recall):
        efforts = [content.effort_of(name) for name in ("lancedb", "chroma")]
        told += (
            f"Databases: {versions(environment.databases() / 'bin' / 'python', DATABASES)}; in "
            "process, behind a server like the plain one: LanceDB with HNSW over 8-bit codes, 20 "
            f"links, the best scored again (ef {efforts[0]}), Chroma with its HNSW, 16 links (ef "
            f"{efforts[1]}); efforts chosen on these queries. "
        )
    return told
