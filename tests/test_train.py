"""Training on a real Ray, two workers."""

import os

import open_clip
import pytest
import torch
import yaml
from ray._private import state

from clipray.errors import ConfigError, InputError, ModelError, OutputError
from clipray.manifest import ModelFolder, ModelManifest, read_json
from clipray.train import CONFIG_FILE, TrainConfig, train
from clipray.training.loader import LoaderConfig
from clipray.training.metrics import METRICS_FILE, read_metrics
from clipray.training.optim import OptimConfig
from clipray.training.trainer import STATE_FILE
from tests.conftest import SESSION_CPUS

pytestmark = pytest.mark.usefixtures("ray_session")


# Of Ray Train on one machine alone: what steers, what trains, what brings the ranks together.
NEEDED = {"TrainController", "RayTrainWorker", "SynchronizationActor"}


@pytest.fixture
def config(shards, architecture, tmp_path):
    return TrainConfig(
        input=(str(shards),),
        output=tmp_path / "trained",
        model=str(architecture),
        epochs=8,
        workers=2,
        precision="fp32",
        loader=LoaderConfig(batch_size=20),
        optim=OptimConfig(lr=3e-3, warmup=0.1),
    )


def actors():
    """Names of classes, of all that have ever been there."""
    return {key: actor["ActorClassName"] for key, actor in state.actors().items()}


def test_two_workers_train_a_model_that_open_clip_opens(config):
    before = actors()
    report = train(config)
    assert {name for key, name in actors().items() if key not in before} == NEEDED
    lines = read_metrics(config.output / METRICS_FILE)
    assert [line["step"] for line in lines] == list(range(1, 17))
    assert lines[-1]["loss"] < 0.7 * lines[0]["loss"]
    assert report.loss < lines[0]["loss"]
    assert report.samples_per_s > 0
    manifest = read_json(ModelManifest, ModelFolder(config.output).manifest)
    assert manifest.identity.fingerprint == report.identity.fingerprint
    assert manifest.metrics["loss"] == pytest.approx(report.loss)
    module, _, _ = open_clip.create_model_and_transforms(f"local-dir:{config.output}")
    with torch.no_grad():
        assert module.eval().encode_image(torch.zeros(1, 3, 32, 32)).shape == (1, 32)
    written = yaml.safe_load((config.output / CONFIG_FILE).read_text())
    assert TrainConfig.model_validate(written).loader == config.loader
    begun = yaml.safe_load((config.output.with_name("trained-run") / CONFIG_FILE).read_text())
    assert begun["cpus_per_worker"] == max(1, min(SESSION_CPUS, os.cpu_count()) // 2)
    left = sorted(path.name for path in config.output.parent.iterdir())
    assert left == ["trained", "trained-run"]
    assert not (config.output / STATE_FILE).exists()


def test_what_cannot_work_is_refused_before_a_worker_starts(config, photos, tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        train(config.model_copy(update={"output": photos}))
    with pytest.raises(ConfigError, match="do not fill one batch"):
        train(config.model_copy(update={"loader": LoaderConfig(batch_size=41)}))
    with pytest.raises(ConfigError, match="cannot be split evenly"):
        train(config.model_copy(update={"loader": LoaderConfig(batch_size=5)}))
    with pytest.raises(ModelError, match="neither an open_clip model name"):
        train(config.model_copy(update={"model": "RN5"}))
    with pytest.raises(InputError, match="no image with a text in column title"):
        train(config.model_copy(update={"loader": LoaderConfig(captions={"title": 1.0})}))
    assert not config.output.exists()
    assert not list(tmp_path.iterdir())
