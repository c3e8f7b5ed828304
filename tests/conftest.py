"""What the tests share: drawings, a tiny CLIP, embeddings, indices and one Ray, made once."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

# Before torch and faiss read it: two threads for tiny work wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

from clipray import cluster
from clipray.dataset import find_shards
from clipray.embeddings import EmbeddingSettings, EmbeddingsFolder, EmbeddingsManifest
from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.export import ExportConfig, export
from clipray.exported import ExportPrecision
from clipray.index.build import IndexBuildConfig, build
from clipray.manifest import ModelSource, write_json
from clipray.part import PartPlan, Workshop, embed_shard
from clipray.prepare import PartSettings
from clipray.training.checkpoints import Checkpoints
from clipray.training.corpus import Corpus
from clipray.training.loader import LoaderConfig
from clipray.training.logbook import LogConfig
from clipray.training.optim import OptimConfig
from clipray.training.peers import Peers
from clipray.training.rank import Job, run_rank
from clipray.training.run_folder import RunFolder
from tests.drawing import write_folder, write_shards
from tests.training.told import Told

SESSION_CPUS = 4
ARCHITECTURE = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8},
    "text_cfg": {
        "context_length": 12,
        "vocab_size": 49408,
        "width": 32,
        "heads": 2,
        "layers": 1,
    },
}


@pytest.fixture(scope="session")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for what is made once."""
    return tmp_path_factory.mktemp("shared")


@pytest.fixture(scope="session")
def photos(workspace: Path) -> Path:
    """40 drawings as a plain folder with captions."""
    return write_folder(workspace / "photos")


@pytest.fixture(scope="session")
def shards(workspace: Path) -> Path:
    """The same drawings as three img2dataset shards."""
    return write_shards(workspace / "shards")


@pytest.fixture(scope="session")
def architecture(workspace: Path) -> Path:
    """open_clip's model_cfg of a tiny CLIP."""
    path = workspace / "tiny.json"
    path.write_text(json.dumps(ARCHITECTURE), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def model(workspace: Path, architecture: Path, photos: Path) -> Path:
    """A model folder, trained for seconds so that captions find their drawings."""
    job = Job(
        model=str(architecture),
        epochs=40,
        precision="fp32",
        loader=LoaderConfig(batch_size=20),
        optim=OptimConfig(lr=3e-3, warmup=0.1),
        log=LogConfig(tensorboard=False),
    )
    corpus, run = Corpus.survey([str(photos)], {"caption": 1.0}), RunFolder(workspace / "run")
    run_rank(job, corpus, run, Peers(), Told())
    with Checkpoints(run.checkpoints, job.checkpoints).result() as (trained, _):
        return Path(shutil.copytree(trained, workspace / "model"))


@pytest.fixture(scope="session")
def encoder(model: Path) -> Encoder:
    """The tiny CLIP, open."""
    return open_encoder(
        ModelSource(name=str(model)), EncoderOptions(device="cpu", precision="fp32")
    )


@pytest.fixture(scope="session")
def exported(workspace: Path, model: Path) -> Path:
    """The tiny CLIP as ONNX files, in all precisions."""
    folder = workspace / "exported"
    precision: tuple[ExportPrecision, ...] = ("fp32", "fp16", "int8")
    export(ExportConfig(model=str(model), output=folder, precision=precision, samples=20))
    return folder


@pytest.fixture(scope="session")
def embeddings(workspace: Path, shards: Path, model: Path, encoder: Encoder) -> Path:
    """Images and texts of the shards, embedded without Ray."""
    folder = EmbeddingsFolder(workspace / "embeddings")
    found = find_shards([str(shards)]).shards
    manifest = EmbeddingsManifest(
        model=encoder.identity,
        source=ModelSource(name=str(model)),
        settings=EmbeddingSettings(modality="both"),
        shards=tuple(shard.name for shard in found),
    )
    write_json(folder.manifest, manifest)
    shop = Workshop(PartSettings(("image", "text"), batch_size=8), folder, encoder)
    for number, shard in enumerate(found):
        embed_shard(PartPlan(number, shard), shop)
    return folder.root


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that need one."""
    with cluster.session(cpus=SESSION_CPUS):
        yield


@pytest.fixture(scope="session")
def flat_index(workspace: Path, embeddings: Path, ray_session: None) -> Path:
    """Images, Flat, two shards."""
    folder = workspace / "flat"
    build(IndexBuildConfig(embeddings=embeddings, index=folder, method="Flat", shards=2))
    return folder


@pytest.fixture(scope="session")
def text_index(workspace: Path, embeddings: Path, ray_session: None) -> Path:
    """Captions, Flat, two shards."""
    folder = workspace / "texts"
    build(
        IndexBuildConfig(
            embeddings=embeddings, index=folder, method="Flat", shards=2, modality="text"
        )
    )
    return folder
