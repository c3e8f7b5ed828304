"""What a GPU is kept busy with: `python -m tests.benchmarks.gpu`, on a machine that has one.

Embedding and training run as their commands do, over JPEGs on the disk, beside the same work on
batches that lie on the GPU already. What separates the two is the price of feeding it. It is not
part of `make bench`, which is for machines without a GPU.
"""

import argparse
import logging
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import get_args

import faiss
import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from clipray import __version__, clip, cluster
from clipray.embed import EmbedConfig, embed
from clipray.encoder import open_encoder
from clipray.encoder_options import Decode, EncoderOptions
from clipray.index import Index
from clipray.manifest import ModelSource
from clipray.pixels import pixel_reader
from clipray.training.batch import Batch
from clipray.training.corpus import Corpus
from clipray.training.loader import Loader, LoaderConfig, plan_of
from clipray.training.metrics import data_wait, read_metrics, samples_per_s
from clipray.training.peers import Peers
from clipray.training.trainer import Recipe, Trainer
from tests.benchmarks.photos import write_photo_shards
from tests.handmade import build_index, clustered_halves, cut_parts, write_embeddings

log = logging.getLogger(__name__)

MODEL = "ViT-B-32"
SIDE, CONTEXT, WORDS = 224, 77, 49_408
DENSE_BF16 = 989e12  # FLOP/s of an H100 or H200 (SXM) by its data sheet
FIRST = 40  # steps left out: their batches lay ready before the first one
CUDA = torch.device("cuda")
EMBED = (  # options of the job
    "{}",
    "{batch_size: 64}",
    "{decode: fast}",
    "{decode_processes: 0}",
)
TRAIN = ("loader.decode=fast", "loader.decode=exact", "compile=true")
METHOD, ROWS, CLUSTERS = "IVF4096,PQ64x4fs", 300_000, 1000  # of an index


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=16_000, help="that are drawn")
    parser.add_argument("--copies", type=int, default=6, help="times that each is read")
    parser.add_argument("--batch", type=int, default=1024, help="of training")
    parser.add_argument("--only", nargs="+", default=["embed", "load", "train", "index"])
    parser.add_argument("--embed", nargs="+", default=EMBED, help="options of the job, in YAML")
    parser.add_argument("--train", nargs="+", default=TRAIN, help="options of the job")
    parser.add_argument("--output", type=Path, help="folder of the table")
    args = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        shards, model = drawn(root, args.images, args.copies), untrained(root)
        lines = list(told(header()))
        if "embed" in args.only:
            lines += told(embedding(root, shards, model, args.embed))
        if "load" in args.only:
            lines += told(loading(shards, args.batch))
        if "train" in args.only:
            lines += told(training(root, shards, args.batch, args.train))
        if "index" in args.only:
            lines += told(building(root))
    if args.output:
        name = f"gpu_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
        (args.output / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


def told(lines: Iterator[str]) -> Iterator[str]:
    """Printed as they come."""
    for line in lines:
        print(line, flush=True)  # noqa: T201
        yield line


def drawn(root: Path, images: int, copies: int) -> Path:
    """Shards of photos, each one `copies` times."""
    shards, each = root / "shards", 1000
    shards.mkdir()
    began = time.monotonic()
    with multiprocessing.Pool() as pool:
        made = pool.starmap(one_shard, [(root, n, each) for n in range(images // each)])
    for number in range(copies * len(made)):
        for end in (".tar", "_stats.json"):
            link = shards / f"{number:05d}{end}"
            link.symlink_to(made[number % len(made)] / f"00000{end}")
    log.info("%d images drawn in %.0f s", images, time.monotonic() - began)
    return shards


def one_shard(root: Path, number: int, each: int) -> Path:
    """A folder with one shard; the pictures of all are the same, their files are not shared."""
    return write_photo_shards(root / f"drawn-{number}", each, each)


def untrained(root: Path) -> Path:
    """A model folder."""
    folder = root / "model"
    folder.mkdir()
    clip.save(clip.create(ModelSource(name=MODEL), 0), folder, {})
    return folder


def header() -> Iterator[str]:
    name, cores = torch.cuda.get_device_name(), os.cpu_count()
    yield f"# One GPU, {datetime.now(UTC):%Y-%m-%d}"
    yield ""
    yield (
        f"clipray {__version__}, torch {torch.__version__}, Python {platform.python_version()}; "
        f"{name}, {cores} CPU cores. {MODEL}, bf16, random weights; photo-like JPEGs of 256 px, "
        "20 to 30 kB. A product of two 8192 × 8192 matrices in bf16 runs at "
        f"{matmul_rate() / 1e12:.0f} TFLOP/s here."
    )


def matmul_rate() -> float:
    """FLOP/s of a large product of random bf16 matrices."""
    side = 8192
    a, b = (torch.randn(side, side, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    return 2 * side**3 / seconds(lambda: a @ b, 20)


def seconds(work: Callable[[], object], times: int) -> float:
    """Of one call, the GPU waited for, after a few to warm up."""
    for _ in range(3):
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def embedding(root: Path, shards: Path, model: Path, jobs: Sequence[str]) -> Iterator[str]:
    """Images a second of the job, and of the encoder alone."""
    yield "\n## Embedding\n"
    yield "| what | images/s | the encoder runs, of the time of an actor |"
    yield "|---|---|---|"
    for batch in (64, 256):
        for where in ("in memory", "on the GPU"):
            speed = alone(model, batch, where)
            yield f"| encoder alone, batches of {batch} {where} | {speed:.0f} | |"
    with cluster.session():
        for number, given in enumerate(jobs):
            output = root / f"embeddings-{number}"
            options = yaml.safe_load(given)
            config = {"input": [str(shards)], "output": output, "model": str(model), **options}
            report = embed(EmbedConfig.model_validate(config))
            log.info("%s: %s", given, report)
            yield f"| job, {given} | {report.images_per_s:.0f} | {report.encoder_busy:.0%} |"


def alone(model: Path, batch: int, where: str) -> float:
    encoder = open_encoder(ModelSource(name=str(model)), EncoderOptions(precision="bf16"))
    rng = np.random.default_rng(0)
    pixels = list(rng.integers(0, 256, (batch, 3, SIDE, SIDE), np.uint8))
    if where == "in memory":
        return batch / seconds(lambda: encoder.encode_images(pixels), 20)
    images = torch.from_numpy(np.stack(pixels)).to(CUDA)
    inside = encoder._images, encoder._normalise, encoder._dtype
    with torch.inference_mode():
        return batch / seconds(lambda: inside[0](inside[1](images).to(inside[2])), 20)


def training(root: Path, shards: Path, batch: int, jobs: Sequence[str]) -> Iterator[str]:
    """Samples a second of the job, and of the same steps on a batch that is always there."""
    yield "\n## Training\n"
    flops = step_flops(64) / 64
    yield f"{flops / 1e9:.1f} GFLOP a sample, forward and backward; global batch {batch}.\n"
    yield "| what | samples/s | model FLOPs utilisation | of the product above | data wait |"
    yield "|---|---|---|---|---|"
    limit = matmul_rate()
    for name, speed, waits in measured(root, shards, batch, jobs):
        rate = speed * flops
        yield (f"| {name} | {speed:.0f} | {rate / DENSE_BF16:.1%} | {rate / limit:.1%} | {waits} |")


def measured(
    root: Path, shards: Path, batch: int, jobs: Sequence[str]
) -> Iterator[tuple[str, float, str]]:
    for number, given in enumerate(jobs):
        compiles = "compile=true" in given
        yield f"resident batches, {given}", resident(batch, compiles=compiles), ""
        yield f"job, {given}", *train_job(root / f"trained-{number}", shards, batch, given)
        yield f"resident batches, {given}, again", resident(batch, compiles=compiles), ""


def loading(shards: Path, batch: int) -> Iterator[str]:
    """Samples a second that decode processes make while nobody computes."""
    yield "\n## Decoding for training\n"
    yield "| loader alone | samples/s |"
    yield "|---|---|"
    for decode in get_args(Decode):
        yield f"| decode={decode} | {loader_alone(shards, batch, decode):.0f} |"


def loader_alone(shards: Path, batch: int, decode: Decode) -> float:
    """Samples a second, in whole rounds of the processes."""
    corpus = Corpus.survey([str(shards)], {"caption": 1.0})
    processes = (os.cpu_count() or 2) - 1
    config = LoaderConfig(batch_size=batch, processes=processes, decode=decode)
    model = clip.create(ModelSource(name=MODEL), 0)
    read = pixel_reader(model.preprocess, decode)
    plan = plan_of(corpus, config, 0)
    loader = Loader(corpus, config, plan, 0, pixels=read, tokenize=model.tokenize)
    at = [time.perf_counter() for _ in loader.epoch(0)]
    last = (len(at) - 1) // processes * processes
    return batch * last / (at[last] - at[0])


def resident(batch: int, *, compiles: bool, steps: int = 30) -> float:
    trainer, given = trainer_of(batch, compiles=compiles)
    return batch / seconds(lambda: trainer.step(given), steps)


def trainer_of(batch: int, *, compiles: bool = False) -> tuple[Trainer, Batch]:
    model = clip.create(ModelSource(name=MODEL), 0)
    loader = LoaderConfig(batch_size=batch)
    recipe = Recipe(epochs=1, precision="bf16", loader=loader, compile=compiles)
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, generator=rng)
    tokens = torch.randint(1, WORDS, (batch, CONTEXT), generator=rng)
    seeds = torch.arange(batch)
    given = Batch(images.to(CUDA), tokens.to(CUDA), seeds, order=0, replaced=0)
    return Trainer(model, recipe, 1000, Peers(device=CUDA)), given


def step_flops(batch: int) -> float:
    """Floating-point operations of one step, counted by torch."""
    trainer, given = trainer_of(batch)
    with FlopCounterMode(display=False) as counter:
        trainer.step(given)
    return float(counter.get_total_flops())


def train_job(output: Path, shards: Path, batch: int, given: str) -> tuple[float, str]:
    """Samples a second and share of waiting, of one epoch without its first steps."""
    line = [sys.executable, "-m", "clipray.cli", "train", "--input", str(shards)]
    line += ["--output", str(output), "--model", MODEL, "--epochs", "1", "--precision", "bf16"]
    line += ["--workers", "1", "--gpu"]
    line += ["-o", f"loader.batch_size={batch}", "-o", "log.tensorboard=false"]
    line += [part for option in given.split() for part in ("-o", option)]
    subprocess.run(line, check=True)
    lines = read_metrics(output.with_name(output.name + "-run") / "metrics.jsonl")
    steps = [line for line in lines if "loss" in line][FIRST:]
    return samples_per_s(steps, batch), f"{data_wait(steps):.1%}"


def building(root: Path) -> Iterator[str]:
    """Seconds of building an inverted file, with the GPU and without."""
    yield f"\n## Index: {ROWS} × 512, {METHOD}\n"
    yield "| lists trained and found by | seconds | recall@10 as built |"
    yield "|---|---|---|"
    vectors = clustered_halves(CLUSTERS, ROWS // CLUSTERS, 512)[0]
    embeddings = write_embeddings(root / "embeddings", cut_parts(vectors, 10))
    queries, has = vectors[:200].astype(np.float32), faiss.get_num_gpus
    for name, count in (("the GPU", has), ("CPUs", lambda: 0)):
        faiss.get_num_gpus = count
        began = time.perf_counter()
        build_index(root / name, embeddings, METHOD)
        took = time.perf_counter() - began
        index = Index.open(root / name)
        found, truth = (index.search(queries, 10, exact=exact) for exact in (False, True))
        same = [len(set(a.ids) & set(b.ids)) / 10 for a, b in zip(found, truth, strict=True)]
        yield f"| {name} | {took:.1f} | {np.mean(same):.3f} |"


if __name__ == "__main__":
    main()
