"""`clipray pipeline`: all jobs in a row, from one file; the same command goes on where it stopped.

What it is told stands in `sections`; how a step runs, and when it is left alone, in `steps`.
"""

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from clipray import cluster, storage
from clipray.config import Config
from clipray.report import DONE, Report
from clipray.sections import PipelineConfig, settled
from clipray.steps import Kept, embedded, evaluated, exported, indexed, trained

__all__ = ["PipelineConfig", "PipelineReport", "StepReport", "pipeline"]

Step = tuple[str, Callable[[], Report]]


class StepReport(Config):
    """One step: what it took, and what it said.

    Attributes:
        kept: it was whole already.
        result: its report.
    """

    name: str
    seconds: float
    kept: bool
    exit_code: int
    summary: str
    result: dict[str, Any]


class PipelineReport(Report):
    """All steps in their order."""

    work: Path
    steps: tuple[StepReport, ...]

    @property
    def exit_code(self) -> int:
        """0, or that of a step that left something out."""
        return max((step.exit_code for step in self.steps), default=DONE)

    def summary(self) -> str:
        """A line for each step, below it what it said."""
        lines = []
        for step in self.steps:
            lines.append(f"{step.name}: {step.seconds:.1f} s")
            lines += [f"  {line}" for line in step.summary.splitlines()]
        return "\n".join(lines)


def pipeline(config: PipelineConfig) -> PipelineReport:
    """Run all steps, or what is left of them.

    Raises:
        MismatchError: what a step finds was made from something else, or in another way.
        ClipRayError: a step failed; the steps before it stand.
    """
    config = settled(config)
    steps, done = list(_steps(config)), []
    with cluster.session(cpus=_cpus(config)):
        for number, (name, work) in enumerate(steps, start=1):
            tqdm.write(f"{number}/{len(steps)} {name}", file=sys.stderr)
            done.append(_run(name, work))
    _note(config)
    return PipelineReport(work=config.work, steps=tuple(done))


def _steps(config: PipelineConfig) -> Iterator[Step]:
    train, export, image, text = config.train, config.export, config.image_index, config.text_index
    evaluate = config.evaluate
    if train:
        yield "train", lambda: trained(train)
    if export:
        yield "export", lambda: exported(export)
    yield "embed", lambda: embedded(config.embed)
    if image:
        yield "image index", lambda: indexed(image)
    if text:
        yield "text index", lambda: indexed(text)
    if evaluate:
        yield "evaluate", lambda: evaluated(evaluate, config.work / "evaluation.json")


def _cpus(config: PipelineConfig) -> int:
    """What the widest step needs of a local cluster."""
    train = config.train
    return max(train.least_cpus if train else 1, config.embed.workers)


def _note(config: PipelineConfig) -> None:
    """Write down what all of it was made with; what is absent stays absent when it is read."""
    tree = config.model_dump(mode="json", exclude_none=True)
    storage.make_folder(config.work)
    used = yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
    storage.write_file(config.work / "pipeline.yaml", used.encode())


def _run(name: str, work: Callable[[], Report]) -> StepReport:
    began = time.monotonic()
    report = work()
    step = StepReport(
        name=name,
        seconds=time.monotonic() - began,
        kept=isinstance(report, Kept),
        exit_code=report.exit_code,
        summary=report.summary(),
        result=report.model_dump(mode="json"),
    )
    if step.kept:
        tqdm.write(f"    {step.summary}", file=sys.stderr)
    return step
