"""Contrastive training of an open_clip model: Ray Train runs the ranks, and starts them again.

The run goes on from its newest checkpoint whoever was lost: a worker, a node, or this command. The
result is a model folder.
"""

import logging
import math
import os
import shutil
from contextlib import closing
from pathlib import Path
from queue import Empty, SimpleQueue
from tempfile import TemporaryDirectory
from threading import Thread
from typing import Any, Self

import ray
import ray.train
import torch
from pydantic import Field, model_validator
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device

from clipray import clip, cluster, nodes, room, storage, uri
from clipray.alone import AloneTrainer
from clipray.config import to_yaml
from clipray.desk import Desk, DeskHandler, DeskSignals
from clipray.errors import ClipRayError, OutputError, UnavailableError, from_remote
from clipray.lent import Lent, lent
from clipray.manifest import ModelIdentity, ModelSource
from clipray.outputs import OutputPath, OutputPlace
from clipray.ranks import RankConfig
from clipray.report import Report
from clipray.training.checkpoints import MANIFEST, Checkpoints
from clipray.training.corpus import Corpus
from clipray.training.loader import plan_of
from clipray.training.metrics import (
    METRICS_FILE,
    Progress,
    data_wait,
    read_metrics,
    samples_per_s,
)
from clipray.training.peers import Peers
from clipray.training.plan import Plan
from clipray.training.rank import Job, Outcome, run_rank
from clipray.training.run_folder import RunFolder
from clipray.training.trainer import STATE_FILE

log = logging.getLogger(__name__)

CONFIG_FILE = "train.yaml"
WAIT_FOR_PEERS_S = 600  # a checkpoint is written while the others wait
POLL_S = 1.0

# Keys that do not decide what comes out of a run, so it may go on with others.
FREE = ("output", "run", "workers", "min_workers", "cpus_per_worker", "gpu", "retries",
        "checkpoints", "log", "evaluation", "loader.threads", "loader.processes",
        "loader.cache_mb")  # fmt: skip


class TrainConfig(Job):
    """Train or fine-tune an open_clip model on image-text pairs.

    A run that was cut off goes on from its newest checkpoint when the same command is given again.
    """

    input: tuple[str, ...] = Field(
        min_length=1, description="folder of img2dataset shards or of images; may be repeated"
    )
    output: OutputPath = Field(description="model folder to write; must not exist")
    run: OutputPlace | None = Field(
        None,
        description="folder or URI for checkpoints and logs; OUTPUT-run where not given. Nodes "
        "that do not see a folder of this machine reach it through Ray",
    )
    workers: int | None = Field(
        None, ge=1, description="training processes, each one rank; one a GPU where not given"
    )
    min_workers: int | None = Field(
        None, ge=1, description="go on with so few while nodes are gone; all where not given"
    )
    cpus_per_worker: int | None = Field(
        None,
        ge=1,
        description="CPUs of one worker; where not given, its share: of a node beside its GPUs, or "
        "of this machine; on CPUs of a cluster 1",
    )
    gpu: bool | None = Field(
        None, description="give every worker a GPU; where not given, if there are enough"
    )
    retries: int = Field(
        3, ge=-1, description="start again after so many failures of workers; -1 without end"
    )

    @model_validator(mode="after")
    def _range(self) -> Self:
        if self.min_workers and self.min_workers > (self.workers or 1):
            raise ValueError(f"min_workers: {self.min_workers} is more than workers")
        return self

    @property
    def least_cpus(self) -> int:
        """CPUs without which not all workers could start."""
        return (self.workers or 1) * (self.cpus_per_worker or 1)


class TrainReport(Report):
    """What training made.

    Attributes:
        run: where checkpoints and logs are.
        metrics: of the result: loss of the last epoch, and what was evaluated.
        samples_per_s: over all workers, from the first step to the last, interruptions included.
        data_wait: share of that time in which the first worker waited for its batches.
    """

    output: Path
    run: str
    identity: ModelIdentity
    metrics: dict[str, float]
    samples_per_s: float
    data_wait: float

    @property
    def loss(self) -> float:
        """Of the last epoch, its mean."""
        return self.metrics.get("loss", math.nan)

    def summary(self) -> str:
        """Where the model is, and what it is worth."""
        told = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        speed = f"{self.samples_per_s:.0f} samples/s, data wait {self.data_wait:.0%}"
        return f"{self.output}: {self.identity}, {told}, {speed}"


def train(config: TrainConfig) -> TrainReport:
    """Train and publish the model folder.

    Raises:
        InputError: nothing to train on.
        OutputError: the output exists.
        ConfigError: a combination that cannot work, or the run folder holds another run.
        ModelError: unknown model or unusable weights.
        ClipRayError: training failed; the message says why.
        KeyboardInterrupt: it was interrupted, and wrote a checkpoint before it ended.
    """
    output = config.output.resolve()
    if storage.occupied(output):
        raise OutputError(f"{output}: exists already; choose another --output or remove it")
    run = RunFolder(uri.at(config.run or f"{output}-run"))
    source = config.source.absolute()
    config = config.model_copy(
        update={
            "model": source.name,
            "pretrained": source.pretrained,
            "evaluation": config.evaluation.absolute(),
        }
    )
    config.evaluation.check()
    corpus = Corpus.survey(config.input, config.loader.captions)
    plan = _plan(config, corpus)
    # A wrong model is told here and not by a worker.
    clip.create(source, config.seed, config.preprocess)
    storage.make_folder(output.parent)
    with run.held(), cluster.session(config.least_cpus):
        settled = _settled(config, plan)
        run.begin(settled.model_dump(mode="json"), FREE)
        _fit(settled, corpus, run, plan.steps)
        return _publish(config, output, run)


def train_worker(put: dict[str, Any]) -> Outcome | ClipRayError:
    """The work of one rank, which lies in Ray's store: see `_trainer`.

    An error that all ranks have agreed on is returned: started again, they would meet it again.
    """
    tree = ray.get(put["tree"])
    config: TrainConfig = tree["config"]
    torch.set_num_threads(config.cpus_per_worker or 1)
    logging.getLogger("clipray").addHandler(DeskHandler(tree["desk"]))
    node = nodes.here()
    peers = Peers.join(_device(), None if node == tree["home"] else node)
    signals = DeskSignals(tree["desk"], alone=tree["alone"])
    try:
        return run_rank(config, tree["corpus"], RunFolder(tree["run"].reached()), peers, signals)
    except UnavailableError:
        raise
    except ClipRayError as error:
        return error


def _plan(config: TrainConfig, corpus: Corpus) -> Plan:
    plan = plan_of(corpus, config.loader, config.seed)
    most = config.workers or 1
    for world in range(config.min_workers or most, most + 1):
        plan.check_world(world, config.accumulate)
    if plan.dropped:
        log.info("%d of %d samples fill no batch in an epoch", plan.dropped, plan.samples)
    return plan


def _settled(config: TrainConfig, plan: Plan) -> TrainConfig:
    """With the number of workers, and what they compute on, as the cluster has it."""
    needs = nodes.Needs(cpus=config.cpus_per_worker or 1, gpus=1 if config.gpu else 0)
    room.wait(needs, config.min_workers or config.workers or 1)
    gpus = int(cluster.resources().get("GPU", 0))
    workers = config.workers or max(1, gpus)
    plan.check_world(workers, config.accumulate)
    gpu = gpus >= workers if config.gpu is None else config.gpu
    cpus, loader = config.cpus_per_worker or _share(workers, gpu=gpu), config.loader
    if gpu and loader.processes is None:  # a GPU is fed by more than one interpreter
        loader = loader.model_copy(update={"processes": cpus - 1})
    settled = {"workers": workers, "gpu": gpu, "cpus_per_worker": cpus, "loader": loader}
    return config.model_copy(update=settled)


def _share(workers: int, *, gpu: bool) -> int:
    """CPUs of one worker, where the user leaves that open."""
    alive = list(nodes.present())
    if gpu:
        return max(1, int(room.share(alive)))
    if not cluster.is_alone():
        return 1
    return max(1, min(int(alive[0].cpus), os.cpu_count() or 1) // workers)


def _device() -> torch.device:
    device = get_device()
    return device[0] if isinstance(device, list) else device


def _fit(config: TrainConfig, corpus: Corpus, run: RunFolder, epoch_steps: int) -> None:
    steps, workers = config.epochs * epoch_steps, config.workers or 1
    with (
        TemporaryDirectory(prefix="clipray-") as scratch,
        lent(run.root) as place,
        closing(Desk()) as desk,
    ):
        trainer = _trainer(config, corpus, place, desk, scratch)
        with Progress(steps, config.loader.batch_size, workers) as progress:
            outcome = _watched(trainer, desk, progress)
    if isinstance(outcome, ClipRayError):
        raise outcome
    if outcome.stopped:
        log.warning("stopped after step %d; the same command goes on from there", outcome.step)
        raise KeyboardInterrupt


def _trainer(
    config: TrainConfig, corpus: Corpus, run: Lent, desk: Desk, scratch: str
) -> TorchTrainer:
    """Ray's own notes go to `scratch`: what it would resume from stands in the run's folder.

    What the ranks are told is put into Ray's store. Else Ray's controller, which only passes it on,
    would import all that it consists of, seconds before the first worker starts.
    """
    most, alone = config.workers or 1, cluster.is_alone()
    tree = {"config": config, "corpus": corpus, "run": run, "desk": desk}
    tree |= {"home": nodes.here(), "alone": alone}
    made = AloneTrainer if alone else TorchTrainer
    return made(
        train_worker,  # type: ignore[arg-type]  # what it returns comes back since Ray 2.50
        train_loop_config={"tree": ray.put(tree)},
        torch_config=RankConfig(timeout_s=WAIT_FOR_PEERS_S),
        scaling_config=ScalingConfig(
            num_workers=(config.min_workers, most) if config.min_workers else most,  # type: ignore[arg-type]
            use_gpu=bool(config.gpu),
            resources_per_worker={"CPU": config.cpus_per_worker or 1},
        ),
        run_config=RunConfig(
            storage_path=scratch,
            failure_config=FailureConfig(max_failures=config.retries),
        ),
    )


def _watched(trainer: TorchTrainer, desk: Desk, progress: Progress) -> Outcome | ClipRayError:
    """Let Ray Train run beside this thread, which shows what is told and passes on Ctrl-C."""
    ended: SimpleQueue[Outcome | BaseException] = SimpleQueue()
    Thread(target=lambda: ended.put(_run(trainer)), daemon=True).start()
    result, asked = None, False
    while result is None:
        try:
            result = _next(ended)
            _show(desk, progress)
        except KeyboardInterrupt:
            if asked:
                raise
            asked = True
            log.warning("writing a checkpoint; Ctrl-C again ends at once")
            desk.stop()
    if isinstance(result, BaseException) and not isinstance(result, ClipRayError):
        raise result
    return result


def _next(ended: "SimpleQueue[Outcome | BaseException]") -> Outcome | BaseException | None:
    try:
        return ended.get(timeout=POLL_S)
    except Empty:
        return None


def _run(trainer: TorchTrainer) -> Outcome | BaseException:
    try:
        outcome: Outcome | ClipRayError = trainer.fit().return_value  # type: ignore[attr-defined]
    except ray.train.TrainingFailedError as error:
        return from_remote(str(error), "training failed")
    except BaseException as error:  # noqa: BLE001  raised again where the command runs
        return error
    return outcome


def _show(desk: Desk, progress: Progress) -> None:
    lines, said = desk.fetch()
    for text in said:
        log.warning("%s", text)
    progress.draw(lines)


def _publish(config: TrainConfig, output: Path, run: RunFolder) -> TrainReport:
    with Checkpoints(run.checkpoints, config.checkpoints).result() as found:
        if found is None:
            raise ClipRayError(
                f"{run.checkpoints}: no checkpoint is left there that is whole; was it removed "
                "meanwhile? The same command trains again"
            )
        folder, manifest = found
        with storage.staged_folder(output) as staged:
            without = shutil.ignore_patterns(STATE_FILE, MANIFEST)
            shutil.copytree(folder, staged, dirs_exist_ok=True, ignore=without)
            run.copy_metrics(staged / METRICS_FILE)
            (staged / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    identity = clip.load(ModelSource(name=str(output))).identity()
    lines = [line for line in read_metrics(output / METRICS_FILE) if "loss" in line]
    return TrainReport(
        output=output,
        run=str(run.root),
        identity=identity,
        metrics=manifest.metrics,
        samples_per_s=samples_per_s(lines, config.loader.batch_size),
        data_wait=data_wait(lines),
    )
