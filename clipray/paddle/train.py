"""`clipray paddle train`: CLIP.yaml as a training run of ours."""

import logging
from pathlib import Path

import torch

from clipray import cluster, storage
from clipray import train as training
from clipray.errors import ConfigError, OutputError
from clipray.paddle.clip_file import (
    ClipFile,
    ContrastiveLossSection,
    DataLoaderSection,
    LoaderSection,
    OptimizerSection,
)
from clipray.paddle.notes import Notes
from clipray.paddle.pretrained import (
    MODEL_FOLDER,
    begun_from,
    preprocessing,
    refuse_paddle,
)
from clipray.paddle.splits import find_split
from clipray.train import TrainConfig, TrainReport
from clipray.training.checkpoints import CheckpointConfig
from clipray.training.evaluation import EvaluationConfig
from clipray.training.loader import LoaderConfig
from clipray.training.logbook import LogConfig
from clipray.training.loss import LossConfig
from clipray.training.optim import OptimConfig
from clipray.training.run_folder import RunFolder

log = logging.getLogger(__name__)

RUN_FOLDER = "run"  # in Global.output_dir


class PaddleTrainConfig(ClipFile):
    """Train on an img2dataset folder as CLIP.yaml says; the model goes to <output_dir>/model."""

    DataLoader: DataLoaderSection


def train(config: PaddleTrainConfig) -> TrainReport:
    """Train as the file says.

    Raises:
        ConfigError: a key that cannot be obeyed.
        InputError: a split that is not there.
        ClipRayError: as `clipray.train.train`.
    """
    model = Path(config.Global.output_dir) / MODEL_FOLDER
    if storage.occupied(model):
        raise OutputError(
            f"{model}: exists already; choose another Global.output_dir, or remove it"
        )
    return training.train(translate(config, count_workers(config.Global.device), Notes()))


def count_workers(device: str) -> int:
    """One on a CPU, else one on each GPU that is to be seen.

    Raises:
        ConfigError: there is no GPU.
    """
    if device == "cpu":
        return 1
    gpus = torch.cuda.device_count()
    if cluster.is_remote():
        with cluster.session():
            gpus = int(cluster.resources().get("GPU", 0))
    if not gpus:
        raise ConfigError(
            "Global.device: found gpu, but no GPU is to be seen here; look at "
            "CUDA_VISIBLE_DEVICES, or give cpu"
        )
    return gpus


def translate(file: PaddleTrainConfig, workers: int, notes: Notes) -> TrainConfig:
    """The same run in our terms.

    Args:
        file: what is asked for.
        workers: each with its own `batch_size`, as each card has there.
        notes: get the keys that decide nothing here.
    """
    source, root = begun_from(file), Path(file.Global.output_dir)
    gpu = file.Global.device == "gpu"
    return TrainConfig(
        input=(find_split(file.DataLoader.Train.dataset, "DataLoader.Train.dataset"),),
        output=root / MODEL_FOLDER,
        run=_run(file) or str(root / RUN_FOLDER),
        model=source.name,
        pretrained=source.pretrained,
        preprocess=preprocessing(file),
        workers=workers,
        gpu=gpu,
        epochs=file.Global.epochs,
        precision="fp32",
        loader=_loader(file.DataLoader, workers, notes),
        loss=_loss(file, notes),
        optim=_optim(file.Optimizer),
        evaluation=_evaluation(file, notes),
        checkpoints=CheckpointConfig(every_epochs=file.Global.save_interval),
        log=LogConfig(
            tensorboard=file.Global.use_visualdl, every_steps=file.Global.print_batch_step
        ),
    )


def _run(file: ClipFile) -> str | None:
    given = file.Global.checkpoints
    if given is None:
        return None
    refuse_paddle("Global.checkpoints", given)
    if not RunFolder(Path(given)).config.is_file():
        raise ConfigError(
            f"Global.checkpoints: found {given}, expected the folder of a run to go on from, such "
            f"as <output_dir>/{RUN_FOLDER}, which holds train.yaml and checkpoints"
        )
    return given


def _loader(data: DataLoaderSection, workers: int, notes: Notes) -> LoaderConfig:
    train, key = data.Train, "DataLoader.Train"
    if not train.sampler.drop_last:
        notes.ignored(
            f"{key}.sampler.drop_last",
            "what fills no global batch is always left out: other samples each epoch",
        )
    if not train.sampler.shuffle:
        notes.ignored(f"{key}.sampler.shuffle", "training always shuffles, by seed and epoch")
    _note_memory(train, key, notes)
    threads = data.Eval.loader.num_workers if data.Eval else 2
    return LoaderConfig(
        batch_size=train.sampler.batch_size * workers,
        processes=train.loader.num_workers,
        threads=max(1, threads),
    )


def _note_memory(section: LoaderSection, key: str, notes: Notes) -> None:
    if not section.loader.use_shared_memory:
        notes.ignored(
            f"{key}.loader.use_shared_memory",
            "decode processes always hand batches on in shared memory, and threads need none",
        )


def _loss(file: ClipFile, notes: Notes) -> LossConfig:
    for name, losses in (("Train", file.Loss.Train), ("Eval", file.Loss.Eval)):
        for number, item in enumerate(losses):
            key = f"Loss.{name}.{number}.ContrastiveLoss"
            notes.ignored(f"{key}.margin", "CLIP's loss is a softmax over the batch, without one")
            if name == "Eval" and item.ContrastiveLoss.weight != 1:
                notes.ignored(f"{key}.weight", "clip_val_loss is told without a weight")
    given = file.Loss.Train[0].ContrastiveLoss if file.Loss.Train else ContrastiveLossSection()
    return LossConfig(weight=given.weight)


def _optim(given: OptimizerSection) -> OptimConfig:
    return OptimConfig(
        lr=given.lr.learning_rate,
        start_lr=given.lr.warmup_start_lr,
        end_lr=given.lr.eta_min,
        warmup_epochs=given.lr.warmup_epoch,
        beta1=given.beta1,
        beta2=given.beta2,
        epsilon=given.epsilon,
        weight_decay=given.weight_decay,
        layer_decay=given.layerwise_decay,
        decay_bias_and_norm=not given.filter_bias_and_bn,
    )


def _evaluation(file: PaddleTrainConfig, notes: Notes) -> EvaluationConfig:
    if not file.Global.eval_during_train:
        return EvaluationConfig()
    held, key = file.DataLoader.Eval, "DataLoader.Eval"
    if held is None:
        raise ConfigError(f"{key}: is missing; give it, or set Global.eval_during_train to False")
    if held.sampler.drop_last:
        notes.ignored(f"{key}.sampler.drop_last", "an evaluation takes every sample")
    if held.sampler.shuffle:
        notes.ignored(f"{key}.sampler.shuffle", "the order of an evaluation changes no metric")
    _note_memory(held, key, notes)
    if held.sampler.batch_size == 1:
        log.warning(
            "%s.sampler.batch_size: is 1, and clip_val_loss then 0, as a pair has no other to be "
            "told from; R@k is right", key,
        )  # fmt: skip
    return EvaluationConfig(
        input=(find_split(held.dataset, f"{key}.dataset"),),
        batch_size=held.sampler.batch_size,
        every_epochs=file.Global.eval_interval,
    )
