"""What the training benchmark found, and the table that says it."""

import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from statistics import mean, median, quantiles, stdev

from clipray import __version__
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.theme import Contest
from tests.benchmarks.training_runs import (
    DRAWN,
    MODEL,
    PER_SHARD,
    PLAIN,
    RAY,
    SETTLE_S,
    THEIRS,
    WORKERS,
    Arena,
    Run,
)
from tests.peers import environment

OURS = ("torch", "open_clip_torch", "ray", "pillow", "numpy")
PEERS = ("torch", "open_clip_torch", "webdataset", "pillow", "numpy")
RAY_BAR = 1.03  # times a step under torchrun
WAIT_BAR = 0.05  # of the time

Results = dict[tuple[str, str], list[Run]]  # by precision and name of the contestant


def report(arena: Arena, results: Results) -> list[str]:
    """All of it, in Markdown."""
    return [*header(arena, results), *table(results), "", *bars(results)]


def table(results: Results) -> Iterator[str]:
    """One line a contestant and precision."""
    yield (
        "| contestant | precision | ms a step, median | min | max | samples per CPU s, median | "
        "min | max | data wait | cores busy | first step after, s |"
    )
    yield "|" + "---|" * 11
    for (precision, name), runs in results.items():
        middle = [median(getattr(run, what) for run in runs) for what in ("cores", "start_s")]
        yield (
            f"| {name} | {precision} | {spread(runs, lambda run: run.ms, '.0f')} | "
            f"{spread(runs, lambda run: run.samples_per_cpu_s, '.2f')} | "
            f"{median(run.data_wait for run in runs):.2%} | {middle[0]:.2f} | {middle[1]:.1f} |"
        )


def bars(results: Results) -> Iterator[str]:
    """What was to be reached."""
    for precision in dict.fromkeys(precision for precision, _ in results):
        ray, plain, theirs = (results.get((precision, who.name)) for who in (RAY, PLAIN, THEIRS))
        if ray and plain:
            told = ratio(ray, plain, lambda run: run.ms)
            yield f"- {precision}, a step under Ray to one under torchrun: {told}, ≤ {RAY_BAR}"
        for who, ours in ((RAY, ray), (PLAIN, plain)):
            if ours and theirs:
                told = ratio(ours, theirs, lambda run: run.samples_per_cpu_s)
                pair = f"{who.name} to {THEIRS.name}"
                yield f"- {precision}, samples per CPU second of {pair}: {told}, ≥ 1"
        if ray:
            most = max(run.data_wait for run in ray)
            yield f"- {precision}, most data wait of {RAY.name}: **{most:.2%}**, < {WAIT_BAR:.0%}"


def ratio(runs: list[Run], others: list[Run], value: Callable[[Run], float]) -> str:
    """Within a round: the median, its middle half, and how sure the mean is."""
    pairs = [value(run) / value(other) for run, other in zip(runs, others, strict=True)]
    told = f"**{median(pairs):.3f}**"
    if len(pairs) < 2:
        return told
    low, _, high = quantiles(pairs, n=4)
    error = stdev(pairs) / len(pairs) ** 0.5
    return (
        f"{told} (half of the rounds {low:.3f} to {high:.3f}; mean {mean(pairs):.3f} ± {error:.3f})"
    )


def spread(runs: list[Run], value: Callable[[Run], float], form: str) -> str:
    """Median, least, most."""
    values = list(map(value, runs))
    return " | ".join(format(one, form) for one in (median(values), min(values), max(values)))


def contests(results: Results) -> Iterator[Contest]:
    """clipray under Ray and under torchrun against open_clip's trainer."""
    for precision in dict.fromkeys(precision for precision, _ in results):
        theirs = results.get((precision, THEIRS.name))
        for who in (RAY, PLAIN):
            ours = results.get((precision, who.name))
            if ours and theirs:
                cpu = [[run.samples_per_cpu_s for run in runs] for runs in (ours, theirs)]
                wall = [[run.ms for run in runs] for runs in (ours, theirs)]
                names = (who.name, THEIRS.name)
                yield Contest(f"{precision} training", "samples a CPU s", *names, *cpu, more=True)
                yield Contest(f"{precision} training, a step", "ms", *names, *wall)


def header(arena: Arena, results: Results) -> list[str]:
    peers = "none"
    if any(name == THEIRS.name for _, name in results):
        peers = versions(environment.peers() / "bin" / "python", PEERS)
    images = DRAWN * PER_SHARD
    size = sum(path.stat().st_size for path in arena.drawn.glob("*.tar")) / images
    rounds = " and ".join(sorted({str(len(runs)) for runs in results.values()}))
    return [
        f"# Training, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), OURS)}. Peers: {peers}.",
        "",
        f"{machine()}. {MODEL} with random weights; {WORKERS} workers with a batch of "
        f"{arena.batch} each and one thread of torch "
        "each, over gloo; AdamW; no evaluation and no checkpoint in the measured steps. "
        f"{images} photo-like JPEGs of 256 px with captions, {size / 1e3:.0f} kB each, again and "
        f"again. All are started before; in each of {rounds} rounds each runs for "
        f"{arena.turn_s:g} s, while the others stand still (SIGSTOP). Counted are whole steps "
        f"that begin {SETTLE_S:g} s after that or later. CPU is that of the whole process tree, "
        "Ray's daemons included.",
        "",
        "clipray keeps no decoded images, so every step decodes; it resizes and crops in the "
        "middle, in two threads of a worker. open_clip's trainer crops at random "
        "(RandomResizedCrop), in one process of a worker; it runs with local loss and gathered "
        "gradients, as clipray does. clipray measures the norm of the gradient in every step, "
        "open_clip's trainer does not. Two of its calls are mended to run on CPUs and with this "
        "webdataset: `tests/benchmarks/contestants/open_clip_loop.py`.",
        "",
    ]
