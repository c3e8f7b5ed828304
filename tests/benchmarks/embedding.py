"""What embedding costs, beside what others use: `python -m tests.benchmarks.embedding`.

All run with the same random weights over the same shards, interleaved, each as a process of its
own. Each reads N images and 2N images: the difference is the cost of N images, and what is left
of the first run is start-up. The data paths, which are cheap, read 1 and 17 times as many. Figures
are CPU seconds of whole process trees; wall time says little on a shared machine.
"""

import json
import logging
import os
import shlex
import statistics
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from clipray import __version__, clip
from clipray.manifest import ModelFolder, ModelSource
from tests.benchmarks.cost import Cost, cost
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.photos import write_photo_shards
from tests.benchmarks.theme import Contest, Pace, keep, parse, parser
from tests.peers import environment

log = logging.getLogger(__name__)

HERE = Path(__file__).parent / "contestants"
ROOT = Path(__file__).parents[2]
MODEL = "ViT-B-32"
TINY = {  # for a quick run
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 1, "width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 1},
}
THREADS = 2  # of torch, in every contestant

EMBED = (
    "{python} -m clipray.cli embed --input {shards} --output {output} --model {model} "
    "--max-workers 1"
)
EXPORT = (
    "{python} -m clipray.cli export --model {model} --output {model}/exported --towers image "
    "--precision int8"
)
LOOP = "{peer} {here}/plain_loop.py {shards} {output} {weights}"
OPTIONS = (  # batches of 256, the default, only make its warm-up dearer
    "--input_dataset {tars} --output_folder {output} --input_format webdataset "
    "--enable_text False --num_prepro_workers 2 --batch_size 64 "
    "--clip_model open_clip:ViT-B-32/{weights}"
)
INFERENCE = "{peer} -m clip_retrieval.cli inference " + OPTIONS
OUR_DATA = "{python} -m tests.benchmarks.contestants.clipray_data {shards} {output} {model}"
THEIR_DATA = "{peer} {here}/clip_retrieval_data.py " + OPTIONS


@dataclass(frozen=True)
class Contestant:
    """A command line and how it computes.

    Attributes:
        more: how many times N images the second run reads more than the first.
        encodes: whether its vectors can be compared.
        first: a command line that is run once before, and not counted.
    """

    name: str
    line: str
    computes: str
    more: int = 1
    encodes: bool = True
    first: str = ""

    @property
    def is_ours(self) -> bool:
        """Whether clipray's environment suffices."""
        return self.line.startswith("{python}")


CONTESTANTS = (
    Contestant("clipray embed", EMBED + " --precision bf16", "bf16"),
    Contestant("clipray embed, fast decode", EMBED + " --precision bf16 --decode fast", "bf16"),
    Contestant(
        "clipray embed, int8", EMBED + " --backend onnx --precision int8", "int8", first=EXPORT
    ),
    Contestant("plain loop", LOOP + " 1 bf16", "bf16 weights"),
    Contestant("clip-retrieval inference", INFERENCE, "fp32"),
    Contestant("data path of clipray", OUR_DATA, "no model", more=16, encodes=False),
    Contestant(
        "data path of clipray, fast decode", OUR_DATA + " fast", "no model", more=16, encodes=False
    ),
    Contestant("data path of clip-retrieval", THEIR_DATA, "no model", more=16, encodes=False),
)

BARS = (
    ("clipray embed", "plain loop"),
    ("clipray embed", "clip-retrieval inference"),
    ("clipray embed, fast decode", "plain loop"),
    ("clipray embed, int8", "clip-retrieval inference"),
    ("data path of clipray", "data path of clip-retrieval"),
    ("data path of clipray, fast decode", "data path of clip-retrieval"),
)


@dataclass(frozen=True)
class Pair:
    """Costs of two runs, the second of which read `images` more."""

    less: Cost
    more: Cost
    images: int

    @property
    def ms(self) -> float:
        """CPU milliseconds that one image more costs."""
        return 1e3 * (self.more.cpu_s - self.less.cpu_s) / self.images


Costs = dict[str, list[Pair]]


@dataclass(frozen=True)
class Arena:
    """Model and shards that all contestants share, in a scratch folder.

    Attributes:
        images: N.
        model: its folder.
        name: of its architecture.
    """

    root: Path
    images: int
    model: Path
    name: str

    def shards(self, times: int) -> Path:
        """Shards of N images, or of a multiple; beyond 2N the same tars come again."""
        folder = self.root / f"shards{times}"
        if not folder.exists():
            folder.mkdir()
            for number in range(2 * times):
                for end in (".tar", "_stats.json"):
                    drawn = self.root / "drawn" / f"{number % 4:05d}{end}"
                    (folder / f"{number:05d}{end}").symlink_to(drawn)
        return folder

    def run(self, contestant: Contestant, times: int) -> tuple[Cost, Path]:
        """Run once into an empty folder."""
        output = Path(tempfile.mkdtemp(dir=self.root)) / "output"
        return self._cost(contestant.line, times, output), output

    def get_ready(self, contestant: Contestant) -> None:
        """Run what comes first."""
        if contestant.first:
            self._cost(contestant.first, 1, Path(tempfile.mkdtemp(dir=self.root)) / "output")

    def places(self, times: int, output: Path) -> dict[str, object]:
        """What a command line names, but for the peers' Python."""
        shards = self.shards(times)
        last = len(list(shards.glob("*.tar"))) - 1
        return {
            "python": sys.executable,
            "here": HERE,
            "shards": shards,
            "tars": f"{shards}/{{00000..{last:05d}}}.tar",
            "output": output,
            "model": self.model,
            "weights": ModelFolder(self.model).weights,
        }

    def _cost(self, template: str, times: int, output: Path) -> Cost:
        peer = environment.peers() / "bin" / "python" if "{peer}" in template else None
        line = shlex.split(template.format(**self.places(times, output), peer=peer))
        return cost(line, self._variables(line[0]), ROOT, output.with_name("log"))

    def _variables(self, program: str) -> Mapping[str, str]:
        threads = {"OMP_NUM_THREADS": str(THREADS)}
        if program == sys.executable:
            return os.environ | threads | {"PYTHONPATH": str(ROOT)}
        return environment.environment() | threads


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--images", type=int, default=200, help="N, a multiple of 2")
    made.add_argument("--only", default="", help="contestants whose name holds this")
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    chosen = [contestant for contestant in CONTESTANTS if args.only in contestant.name]
    if args.quick:
        args.images = 16
        chosen = [c for c in chosen if c.name == "data path of clipray"]
    name = "_".join(["embedding", *args.only.split()])
    with tempfile.TemporaryDirectory() as scratch:
        arena = prepare(Path(scratch), args.images, tiny=args.quick)
        for lines, costs in measure(arena, chosen, pace):
            keep(args.output, name, lines, contests(costs))  # rounds are long


def prepare(root: Path, images: int, *, tiny: bool = False) -> Arena:
    """Draw the photos and the weights."""
    model, name = root / "model", MODEL
    model.mkdir()
    if tiny:
        name = str(root / "tiny.json")
        Path(name).write_text(json.dumps(TINY), encoding="utf-8")
    clip.save(clip.create(ModelSource(name=name), seed=0), model, {})
    write_photo_shards(root / "drawn", 2 * images, per_shard=images // 2)
    return Arena(root, images, model, Path(name).stem)


def reference(arena: Arena) -> Path:
    """Vectors of fp32 open_clip, of the N images."""
    line = "{peer} {here}/reference.py {shards} {output} {weights}"
    return arena.run(Contestant("reference", line, "fp32"), 1)[1]


def measure(
    arena: Arena, chosen: list[Contestant], pace: Pace
) -> Iterator[tuple[list[str], Costs]]:
    """The table after each round; in a round, each contestant runs twice."""
    truth = read_vectors(reference(arena)) if any(c.encodes for c in chosen) else {}
    costs: Costs = {contestant.name: [] for contestant in chosen}
    alike: dict[str, dict[str, float]] = {}
    for contestant in chosen:
        arena.get_ready(contestant)
    for number in pace.rounds():
        for contestant in chosen:
            less, output = arena.run(contestant, 1)
            more, _ = arena.run(contestant, 1 + contestant.more)
            costs[contestant.name].append(Pair(less, more, contestant.more * arena.images))
            if contestant.encodes:
                alike[contestant.name] = cosines(read_vectors(output), truth)
            log.info("%s: %.1f s, %.1f s of CPU", contestant.name, less.cpu_s, more.cpu_s)
        rows = table(chosen, costs, alike, arena.images)
        yield [*header(arena, chosen, number + 1), *rows, *bars(costs)], costs


def read_vectors(output: Path) -> dict[str, np.ndarray]:
    """Vectors by img2dataset's key, from clip-retrieval's layout."""
    tables = sorted((output / "metadata").glob("*.parquet"))
    arrays = sorted((output / "img_emb").glob("*.npy"))
    keys = [key for path in tables for key in pq.read_table(path)["image_path"].to_pylist()]
    vectors = np.concatenate([np.load(path).astype(np.float64) for path in arrays])
    return {key.rpartition("/")[2]: row for key, row in zip(keys, vectors, strict=True)}


def cosines(vectors: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Lowest cosine to the truth; and of vectors less their mean, as random weights hide much."""
    if vectors.keys() != truth.keys():
        raise RuntimeError(f"{len(vectors)} vectors for {len(truth)} images")
    ours, theirs = (np.stack([rows[key] for key in sorted(truth)]) for rows in (vectors, truth))
    centred = rowwise_cosine(ours - ours.mean(axis=0), theirs - theirs.mean(axis=0))
    return {"lowest": rowwise_cosine(ours, theirs).min(), "centred": float(np.median(centred))}


def rowwise_cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def table(
    chosen: list[Contestant], costs: Costs, alike: dict[str, dict[str, float]], images: int
) -> Iterator[str]:
    """One line a contestant."""
    yield (
        "| contestant | computes | CPU ms an image, median | min | max | images per CPU s | "
        f"{images} images, CPU s | of that start-up, CPU s | wall s | cosine to fp32, lowest | "
        "less the mean, median |"
    )
    yield "|" + "---|" * 11
    for contestant in chosen:
        pairs = costs[contestant.name]
        ms = [pair.ms for pair in pairs]
        whole = statistics.median(pair.less.cpu_s for pair in pairs)
        wall = statistics.median(pair.less.wall_s for pair in pairs)
        middle = statistics.median(ms)
        like = alike.get(contestant.name)
        close = f"{like['lowest']:.5f} | {like['centred']:.5f}" if like else "– | –"
        yield (
            f"| {contestant.name} | {contestant.computes} | {middle:.2f} | {min(ms):.2f} | "
            f"{max(ms):.2f} | {1e3 / middle:.1f} | {whole:.1f} | "
            f"{whole - images * middle / 1e3:.1f} | {wall:.1f} | {close} |"
        )


def bars(costs: Costs) -> Iterator[str]:
    """How many times cheaper clipray is, by the medians and within each round."""
    yield ""
    for ours, theirs in BARS:
        if ours in costs and theirs in costs:
            mine, other = ([pair.ms for pair in costs[name]] for name in (ours, theirs))
            ratios = sorted(b / a for a, b in zip(mine, other, strict=True))
            middle = statistics.median(other) / statistics.median(mine)
            spread = f"rounds {ratios[0]:.2f} to {ratios[-1]:.2f}"
            yield f"- {ours} against {theirs}: **{middle:.2f}×** ({spread})"


def contests(costs: Costs) -> Iterator[Contest]:
    """What stands in the bars, in CPU time and, start-up included, by the clock."""
    for ours, theirs in BARS:
        if costs.get(ours) and costs.get(theirs):
            mine, others = ([pair.ms for pair in costs[name]] for name in (ours, theirs))
            yield Contest("an image more", "CPU ms", ours, theirs, mine, others)
            mine, others = ([pair.less.wall_s for pair in costs[name]] for name in (ours, theirs))
            yield Contest("the shorter run, start-up included", "s", ours, theirs, mine, others)


def header(arena: Arena, chosen: list[Contestant], rounds: int) -> list[str]:
    sizes = [path.stat().st_size for path in (arena.root / "drawn").glob("*.tar")]
    size = sum(sizes) / 2 / arena.images
    peers = "none"
    if not all(contestant.is_ours for contestant in chosen):
        peers = versions(environment.peers() / "bin" / "python", THEIRS)
    return [
        f"# Embedding images, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), OURS)}. Peers: {peers}.",
        "",
        f"{machine()}. {arena.name} with random weights; {arena.images} and "
        f"{2 * arena.images} photo-like JPEGs of 256 px, {size / 1e3:.0f} kB each in tars of "
        f"{arena.images // 2}; {THREADS} threads of torch each; {rounds} interleaved rounds. "
        "The cost of an image is that of the images which a longer run reads more. A data path "
        "ends where the encoder begins: clip-retrieval's with normalised floats, clipray's with "
        "bytes, which its encoder normalises (0.1 ms an image for bf16, 0.3 ms for fp32).",
        "",
    ]


OURS = ("torch", "open_clip_torch", "ray", "pillow", "numpy")
THEIRS = ("torch", "open_clip_torch", "clip-retrieval", "webdataset", "pillow", "numpy")


if __name__ == "__main__":
    main()
