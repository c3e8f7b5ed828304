"""Contrastive training of an open_clip model: Ray Train runs the loop on every worker.

Rank 0 writes a line of metrics a step; the command draws its progress from that file. The result
is a model folder.
"""

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray.train
import torch
from pydantic import Field
from ray.train import Checkpoint, FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer, get_device, prepare_model

from clipray import clip, cluster, storage
from clipray.config import to_yaml
from clipray.errors import ClipRayError, OutputError, from_remote
from clipray.manifest import ModelIdentity, ModelSource
from clipray.report import Report
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader
from clipray.training.metrics import MetricsWriter, followed, read_metrics, samples_per_s
from clipray.training.plan import Plan
from clipray.training.trainer import Recipe, Trainer

log = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
CONFIG_FILE = "train.yaml"


class TrainConfig(Recipe):
    """Train or fine-tune an open_clip model on image-text pairs."""

    input: tuple[str, ...] = Field(
        min_length=1, description="folder of img2dataset shards or of images; may be repeated"
    )
    output: Path = Field(description="model folder to write; must not exist")
    model: str = Field(
        description="open_clip model name, model folder, or JSON file with open_clip's model_cfg"
    )
    pretrained: str | None = Field(
        None, description="open_clip tag or weights file; random weights where not given"
    )
    workers: int = Field(1, ge=1, description="training processes, each one rank")
    cpus_per_worker: int = Field(1, ge=1, description="CPUs of one worker")
    gpu: bool = Field(False, description="give every worker a GPU")


class TrainReport(Report):
    """What training made.

    Attributes:
        loss: of the last epoch, its mean.
        samples_per_s: over all workers, from the first step to the last.
    """

    output: Path
    identity: ModelIdentity
    loss: float
    samples_per_s: float

    def summary(self) -> str:
        """Where the model is, and what it cost."""
        return (
            f"{self.output}: {self.identity}, loss {self.loss:.3f}, "
            f"{self.samples_per_s:.0f} samples/s"
        )


def train(config: TrainConfig) -> TrainReport:
    """Train and publish the model folder.

    Raises:
        InputError: nothing to train on.
        OutputError: the output exists.
        ModelError: unknown model or unusable weights.
        ClipRayError: a worker failed; the message is its error.
    """
    output = config.output.resolve()
    if storage.occupied(output):
        raise OutputError(f"{output}: exists already; choose another --output or remove it")
    source = _source(config).absolute()
    config = config.model_copy(update={"model": source.name, "pretrained": source.pretrained})
    corpus = Corpus.survey(config.input, config.loader.captions)
    # A wrong plan or model is told here and not by a worker.
    plan = _plan(config, corpus)
    plan.check_world(config.workers)
    clip.create(source, config.seed)
    storage.make_folder(output.parent)
    with _run_folder(output) as run, cluster.session(cpus=config.workers * config.cpus_per_worker):
        steps = plan.steps * config.epochs
        with followed(run / METRICS_FILE, steps, config.loader.batch_size):
            result = _fit(config, corpus, run)
        return _publish(config, output, run, result)


def train_worker(tree: dict[str, Any]) -> None:
    """The work of one rank; `tree` holds config, corpus and the run folder."""
    config: TrainConfig = tree["config"]
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(config.cpus_per_worker)
    model = clip.create(_source(config), config.seed)
    plan = _plan(config, tree["corpus"])
    trainer = Trainer(model, config, plan, _device(), prepare_model)
    loader = Loader(
        tree["corpus"],
        config.loader,
        plan,
        config.seed,
        rank=rank,
        world=world,
        pixels=trainer.pixels,
        tokenize=model.tokenize,
    )
    name = f"rank{rank}.jsonl" if rank else METRICS_FILE
    with (tree["run"] / name).open("w", encoding="utf-8") as stream:
        writer = MetricsWriter(stream)
        for epoch in range(config.epochs):
            for values in trainer.epoch(loader.epoch(epoch)):
                writer.write(values)
    _hand_over(model, {"loss": trainer.loss(), "replaced_samples": float(loader.replaced)})


def _device() -> torch.device:
    device = get_device()
    return device[0] if isinstance(device, list) else device


def _hand_over(model: clip.ClipModel, metrics: dict[str, float]) -> None:
    if ray.train.get_context().get_world_rank():
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as scratch:
        clip.save(model, Path(scratch), metrics)
        ray.train.report(metrics, Checkpoint.from_directory(scratch), checkpoint_dir_name="last")


def _plan(config: TrainConfig, corpus: Corpus) -> Plan:
    loader = config.loader
    weights = corpus.weights(loader.weights)
    return Plan(
        corpus.counts,
        loader.batch_size,
        config.seed,
        weights=weights,
        window=loader.shuffle_shards,
    )


def _source(config: TrainConfig) -> ModelSource:
    return ModelSource(name=config.model, pretrained=config.pretrained)


def _fit(config: TrainConfig, corpus: Corpus, run: Path) -> ray.train.Result:
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config, "corpus": corpus, "run": run},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.gpu,
            resources_per_worker={"CPU": config.cpus_per_worker},
        ),
        run_config=RunConfig(
            name="run", storage_path=str(run), failure_config=FailureConfig(max_failures=0)
        ),
    )
    try:
        return trainer.fit()
    except SystemExit:  # how Ray Train ends when it is interrupted
        raise KeyboardInterrupt from None
    except ray.train.TrainingFailedError as error:
        raise from_remote(str(error), "training failed") from error


def _publish(config: TrainConfig, output: Path, run: Path, result: ray.train.Result) -> TrainReport:
    if result.checkpoint is None:
        raise ClipRayError("training ended without a checkpoint")
    with storage.staged_folder(output) as staged:
        with result.checkpoint.as_directory() as trained:
            shutil.copytree(trained, staged, dirs_exist_ok=True)
        shutil.copy(run / METRICS_FILE, staged)
        (staged / CONFIG_FILE).write_text(to_yaml(config), encoding="utf-8")
    identity = clip.load(ModelSource(name=str(output))).identity()
    speed = samples_per_s(read_metrics(run / METRICS_FILE), config.loader.batch_size)
    return TrainReport(
        output=output,
        identity=identity,
        loss=float((result.metrics or {})["loss"]),
        samples_per_s=speed,
    )


@contextmanager
def _run_folder(output: Path) -> Iterator[Path]:
    run = storage.staging_path(output)
    run.mkdir()
    try:
        yield run
    finally:
        shutil.rmtree(run, ignore_errors=True)
