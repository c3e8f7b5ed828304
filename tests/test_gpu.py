"""What runs on a GPU gives what a CPU gives; left out where there is none."""

import faiss
import numpy as np
import pytest
import torch

from clipray import clip
from clipray.embed import EmbedConfig, embed
from clipray.embeddings import Parts
from clipray.encoder import open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.train import TrainConfig, train
from clipray.training.augment import AugmentConfig
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader, LoaderConfig, plan_of
from clipray.training.metrics import read_metrics
from clipray.training.optim import OptimConfig
from clipray.training.peers import Peers
from clipray.training.trainer import Recipe, Trainer
from tests.handmade import build_index, clustered_halves, cut_parts, write_embeddings

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

CUDA = torch.device("cuda")
STRONG = AugmentConfig(rotate=30, shift=0.2, brightness=0.4)


def losses(photos, architecture, device, **options):
    corpus = Corpus.survey([str(photos)], {"caption": 1.0})
    given = {"epochs": 3, "precision": "fp32", "optim": OptimConfig(lr=1e-3)} | options
    recipe = Recipe(loader=LoaderConfig(batch_size=20, processes=2), augment=STRONG, **given)
    model = clip.create(ModelSource(name=str(architecture)), recipe.seed)
    plan = plan_of(corpus, recipe.loader, recipe.seed)
    trainer = Trainer(model, recipe, plan.steps, Peers(device=device))
    loader = Loader(
        corpus, recipe.loader, plan, recipe.seed, pixels=pixel_reader(model.preprocess),
        tokenize=model.tokenize,
    )  # fmt: skip
    for epoch in range(recipe.epochs):
        for batch in loader.epoch(epoch):
            trainer.step(batch)
    return [step["loss"] for step in trainer.drain()]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_vectors_are_those_of_the_cpu(model, encoder, photos, precision):
    options = EncoderOptions(device="cuda", precision=precision)
    other = open_encoder(ModelSource(name=str(model)), options)
    files = sorted(photos.rglob("*.png"))
    pixels = [encoder.pixels(path.read_bytes()) for path in files]
    for mine, theirs in (
        (encoder.encode_images(pixels), other.encode_images(pixels)),
        (encoder.encode_texts(["a red circle", "x"]), other.encode_texts(["a red circle", "x"])),
    ):
        assert (mine * theirs).sum(axis=1).min() > (0.9999 if precision == "fp32" else 0.998)


def test_losses_are_those_of_the_cpu(photos, architecture, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    mine, theirs = (losses(photos, architecture, torch.device(name)) for name in ("cpu", "cuda"))
    assert theirs == pytest.approx(mine, rel=1e-2)


@pytest.mark.parametrize(
    "options",
    [{"precision": "bf16"}, {"precision": "fp16"}, {"accumulate": 2}, {"ema": 0.9}],
    ids=str,
)
def test_every_precision_learns(photos, architecture, options):
    found = losses(photos, architecture, CUDA, epochs=8, **options)
    assert np.isfinite(found).all()
    assert found[-1] < found[0]


def test_a_run_takes_the_gpu_and_so_does_the_job_that_embeds(
    photos, architecture, ray_session, tmp_path
):
    run = {
        "input": [str(photos)], "output": tmp_path / "model", "model": str(architecture),
        "epochs": 2, "loader": {"batch_size": 20}, "cpus_per_worker": 2,
    }  # fmt: skip
    report = train(TrainConfig.model_validate(run))
    assert np.isfinite(report.loss)
    environment = (tmp_path / "model-run/environment.json").read_text(encoding="utf-8")
    assert "cuda" in environment
    assert len(read_metrics(tmp_path / "model-run/metrics.jsonl")) >= 4
    found = embed(
        EmbedConfig(input=(str(photos),), output=tmp_path / "e", model=str(tmp_path / "model"))
    )
    assert found.rows == 40
    assert Parts.open(tmp_path / "e").dim == 32


@pytest.mark.skipif(not faiss.get_num_gpus(), reason="this Faiss sees no GPU")
@pytest.mark.parametrize("method", ["IVF64,Flat", "IVF64,PQ8x4fs", "IVF64_HNSW32,PQ8x4fs"])
def test_lists_that_the_gpu_made_find_what_the_cpus_do(monkeypatch, tmp_path, method):
    vectors = clustered_halves(64, 100, 32)[0]
    embeddings = write_embeddings(tmp_path / "e", cut_parts(vectors, 3))
    queries = vectors[:100].astype(np.float32)
    recalls = []
    for name in ("gpu", "cpu"):
        build_index(tmp_path / name, embeddings, method, shards=2)
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
        index = Index.open(tmp_path / name)
        found, truth = (index.search(queries, 10, exact=exact) for exact in (False, True))
        hits = [len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(found, truth, strict=True)]
        recalls.append(np.mean(hits))
    assert recalls[0] > recalls[1] - 0.03
