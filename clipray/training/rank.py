"""A run as one rank lives it: go on from the newest checkpoint, train, evaluate, save, end.

All ranks take the same turns. Before each step they agree on going on, so that none waits for one
that has failed. Who started the ranks is not known here; they talk to it through `Signals`.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field

from clipray import clip, uri
from clipray.errors import ClipRayError, ConfigError, OutputError, UnavailableError
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.preprocess import PreprocessConfig
from clipray.training.batch import Batch
from clipray.training.checkpoints import CheckpointConfig, CheckpointManifest, Checkpoints
from clipray.training.corpus import Corpus
from clipray.training.evaluation import Evaluation, EvaluationConfig
from clipray.training.gradients import AUTOCAST
from clipray.training.heap import keep_freed
from clipray.training.loader import Loader, begin_processes, plan_of
from clipray.training.logbook import Logbook, LogConfig
from clipray.training.metrics import Values
from clipray.training.peers import CPU, Peers
from clipray.training.run_folder import RunFolder
from clipray.training.shares import from_first, together
from clipray.training.trainer import Recipe, Trainer

log = logging.getLogger(__name__)

PREEMPTION_LOOK_S = 5
SHOW_S = 2  # metrics are shown at least so often, if there are steps


class Job(Recipe):
    """What a rank has to know: the recipe, the model to begin with, and what to do on the way."""

    model: str = Field(
        description="open_clip model name, model folder, or JSON file with open_clip's model_cfg"
    )
    pretrained: str | None = Field(
        None, description="open_clip tag or weights file; random weights where not given"
    )
    preprocess: PreprocessConfig = PreprocessConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoints: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    @property
    def source(self) -> ModelSource:
        """The model to begin with."""
        return ModelSource(name=self.model, pretrained=self.pretrained)


class Signals(Protocol):
    """How a run talks to who started it."""

    def tell(self, lines: list[Values]) -> None:
        """Metrics of steps; the first rank alone tells them."""

    def stop_asked(self) -> bool:
        """Whether the run is to end early, with a checkpoint; the first rank alone asks."""

    def preempted(self) -> bool:
        """Whether a node goes away soon; all ranks ask together."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        step: steps that are done.
        stopped: it was asked to end early.
    """

    step: int
    stopped: bool


def run_rank(job: Job, corpus: Corpus, run: RunFolder, peers: Peers, signals: Signals) -> Outcome:
    """Live a run; all ranks call it together.

    Args:
        job: the same on all ranks.
        corpus: samples to train on.
        run: where checkpoints and logs are; the first rank alone looks into it.
        peers: the ranks.
        signals: to who started them.

    Raises:
        ClipRayError: the same one on all ranks.
    """
    together(lambda: corpus.require_here() if peers.node else None, peers)
    if peers.device == CPU:
        keep_freed()
    with ExitStack() as stack:
        rank = _Rank(job, corpus, run, peers, signals)
        together(lambda: rank.open_book(stack), peers)
        return rank.live()


class _Rank:
    def __init__(
        self, job: Job, corpus: Corpus, run: RunFolder, peers: Peers, signals: Signals
    ) -> None:
        self._job, self._corpus, self._run, self._peers = job, corpus, run, peers
        self._signals = signals
        begin_processes(job.loader)
        self._checkpoints = Checkpoints(run.checkpoints, job.checkpoints)
        self._plan = plan_of(corpus, job.loader, job.seed)
        model = together(lambda: clip.create(job.source, job.seed, job.preprocess), peers)
        state, self._metrics = from_first(self._found, peers)
        self._trainer = together(lambda: Trainer(model, job, self._plan.steps, peers, state), peers)
        self._loader = Loader(
            corpus, job.loader, self._plan, job.seed, rank=peers.rank, world=peers.world,
            pixels=pixel_reader(model.preprocess, job.loader.decode), tokenize=model.tokenize,
        )  # fmt: skip
        self._evaluation = Evaluation(
            job.evaluation, model, peers, pixels=pixel_reader(model.preprocess),
            threads=job.loader.threads, autocast=AUTOCAST.get(job.precision),
        )  # fmt: skip
        self._saved, self._saved_at = self._trainer.done, time.monotonic()
        self._looked_at, self._written_at = time.monotonic(), time.monotonic()
        self._warned = False
        self._stopping, self._wanted, self._shown = False, False, False
        self._losses: list[float] = []
        self._logs: Path | None = None
        self._book: Logbook | None = None

    def open_book(self, stack: ExitStack) -> None:
        """Begin to write things down, on the first rank."""
        if self._peers.first:
            self._logs = stack.enter_context(self._run.local())
            log_config = self._job.log
            book = Logbook.opened(self._logs, log_config, self._saved, self._job)
            self._book = stack.enter_context(book)
            self._run.note_environment(self._peers.world, str(self._peers.device))

    def live(self) -> Outcome:
        """All epochs that are left."""
        steps = self._plan.steps
        for epoch in range(self._trainer.done // steps, self._job.epochs):
            for batch, waited in self._batches(epoch, self._trainer.done - epoch * steps):
                self._trainer.step(batch, waited)
                if self._shown or self._trainer.done % self._job.log.every_steps == 0:
                    self._write()
                if self._trainer.done % steps and self._due():
                    self._save()
            if self._stopping:
                break
            self._end_epoch(epoch)
        if self._saved < self._trainer.done or not self._stopping:
            self._save()
        return Outcome(self._trainer.done, self._stopping)

    def _batches(self, epoch: int, start: int) -> Iterator[tuple[Batch, float]]:
        """Batches with the seconds that each was waited for, until all agree to stop."""
        batches = self._loader.epoch(epoch, start)
        for _ in range(start, self._plan.steps):
            began = time.perf_counter()
            batch, error = None, None
            try:
                batch = next(batches)
            except UnavailableError:  # begun again, it may succeed
                raise
            except ClipRayError as raised:
                error = raised
            waited = time.perf_counter() - began
            self._vote(error)
            if self._stopping or batch is None:
                return
            yield batch, waited

    def _vote(self, error: ClipRayError | None) -> None:
        first, now = self._peers.first, time.monotonic()
        stop = first and self._signals.stop_asked()
        save = first and now - self._saved_at > 60 * self._job.checkpoints.every_minutes
        look = first and now - self._looked_at > PREEMPTION_LOOK_S
        show = first and now - self._written_at > SHOW_S
        failed, stopping, wanted, looking, shown = self._peers.sum(
            [float(vote) for vote in (error is not None, stop, save, look, show)]
        )
        if failed:
            self._peers.agree(error)
        self._stopping, self._wanted, self._shown = bool(stopping), bool(wanted), bool(shown)
        if looking:
            self._looked_at = now
            if self._signals.preempted() and not self._warned:
                self._wanted = self._warned = True

    def _due(self) -> bool:
        every = self._job.checkpoints.every_steps
        return self._wanted or bool(every and self._trainer.done % every == 0)

    def _end_epoch(self, epoch: int) -> None:
        """Evaluate before a checkpoint: it stands for an epoch that is over."""
        self._write()
        if self._job.evaluation.due(epoch, self._job.epochs):
            self._metrics = self._evaluation.run(self._trainer.result)
            self._note([{"step": self._trainer.done, "epoch": epoch} | self._metrics])
        if self._losses:
            self._metrics["loss"] = sum(self._losses) / len(self._losses)
            self._losses = []
        every, last = self._job.checkpoints.every_epochs, epoch + 1 == self._job.epochs
        if not last and (self._due() or (every and (epoch + 1) % every == 0)):
            self._save()

    def _write(self) -> None:
        self._written_at = time.monotonic()
        lines = self._trainer.drain()
        self._losses += [line["loss"] for line in lines if not line["skipped"]]
        self._note(lines)
        self._trainer.require_finite()

    def _note(self, lines: list[Values]) -> None:
        if self._book and lines:
            for line in lines:
                self._book.write(line)
            self._book.flush()
            self._signals.tell(lines)

    def _save(self) -> None:
        self._write()
        together(self._write_checkpoint, self._peers)
        self._saved, self._saved_at, self._wanted = self._trainer.done, time.monotonic(), False

    def _write_checkpoint(self) -> None:
        if not self._peers.first:
            return
        trainer, metrics = self._trainer, self._metrics
        try:
            self._checkpoints.save(
                trainer.done, self._corpus.digest, metrics, lambda at: trainer.save(at, metrics)
            )
            if self._logs:
                self._run.send_logs(self._logs)
        except OSError as error:
            raise OutputError(
                f"{self._run.checkpoints}: a checkpoint cannot be written "
                f"({error.strerror or error})"
            ) from error

    def _found(self) -> tuple[dict[str, Any] | None, dict[str, float]]:
        """State and metrics of the newest checkpoint."""
        with uri.reachable(self._run.root), self._checkpoints.newest() as checkpoint:
            return self._state(*checkpoint) if checkpoint else (None, {})

    def _state(
        self, folder: Path, manifest: CheckpointManifest
    ) -> tuple[dict[str, Any], dict[str, float]]:
        if manifest.data != self._corpus.digest:
            raise ConfigError(
                f"{self._run.root}: its data has changed since step {manifest.step}; bring back "
                "the shards as they were, or choose another --run"
            )
        log.warning("going on from the checkpoint of step %d", manifest.step)
        return Trainer.read(folder), manifest.metrics
