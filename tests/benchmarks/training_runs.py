"""One run of a trainer: when each step ended, and what its process tree had used by then."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

import numpy as np

from clipray.config import to_yaml
from clipray.training.loader import LoaderConfig
from clipray.training.metrics import read_metrics
from clipray.training.rank import Job
from tests.benchmarks.photos import write_photo_shards
from tests.benchmarks.tree import LOOK_S, Tree
from tests.peers import environment

HERE = Path(__file__).parent / "contestants"
ROOT = Path(__file__).parents[2]
MODEL = "ViT-S-32-alt"
WORKERS = 2
BATCH = 16  # of a worker
SHARDS = 8  # half of them are the other half once more
LAST = 3  # steps left out at the end, when nothing is decoded any more

TORCHRUN = f"-m torch.distributed.run --standalone --nproc-per-node {WORKERS} "
TRAIN = (
    "{python} -m clipray.cli train -c {config} --input {shards} --output {output}/model "
    f"--run {{output}}/run --workers {WORKERS} --cpus-per-worker 1"
)
LOOP = (
    "{python} " + TORCHRUN + "-m tests.benchmarks.contestants.torchrun_loop "
    "{config} {shards} {output}/run"
)
OPEN_CLIP = (
    "{peer} " + TORCHRUN + f"-- {{here}}/open_clip_loop.py --model {MODEL} --batch-size {{batch}} "
    "--dataset-type webdataset --train-data {tars} --train-num-samples {samples} --workers 1 "
    "--epochs 1 --precision {theirs} --local-loss --gather-with-grad --device cpu "
    "--dist-backend gloo --log-every-n-steps 1 --zeroshot-frequency 0 --logs {output} --name run"
)
THEIR_NAMES = {"fp32": "fp32", "bf16": "amp_bf16"}  # of precisions
THEIR_STEP = re.compile(r"Train Epoch: .* Data \(t\): ([\d.]+) ")


@dataclass(frozen=True, slots=True)
class Step:
    """When it ended, in seconds since 1970, and how long the first rank waited for its batch."""

    at: float
    waited: float


@dataclass(frozen=True, slots=True)
class Line:
    """What a program printed, and when."""

    at: float
    text: str


ReadSteps = Callable[[Path, list[Line]], list[Step]]


def from_metrics(output: Path, _: list[Line]) -> list[Step]:
    """Steps of clipray's loop."""
    if not (output / "run" / "metrics.jsonl").exists():
        return []
    lines = [line for line in read_metrics(output / "run" / "metrics.jsonl") if "loss" in line]
    return [Step(line["time"], line["waited"]) for line in lines]


def from_log(_: Path, lines: list[Line]) -> list[Step]:
    """Steps of open_clip's trainer, which prints one line each."""
    found = [(line.at, THEIR_STEP.search(line.text)) for line in lines]
    return [Step(at, float(match[1])) for at, match in found if match]


@dataclass(frozen=True)
class Contestant:
    """A command line, and where its steps are read."""

    name: str
    line: str
    steps: ReadSteps


RAY = Contestant("clipray train", TRAIN, from_metrics)
PLAIN = Contestant("clipray's loop, torchrun", LOOP, from_metrics)
THEIRS = Contestant("open_clip_train, torchrun", OPEN_CLIP, from_log)
CONTESTANTS = (RAY, PLAIN, THEIRS)


@dataclass(frozen=True, slots=True)
class Run:
    """The steady part of a run.

    Attributes:
        steps: in it.
        wall_s: of it.
        cpu_s: of the whole process tree, in it.
        waited_s: of it, the first rank waited for batches.
        start_s: from the start of the command to the end of the first step.
        samples: of a step, on all workers.
    """

    steps: int
    wall_s: float
    cpu_s: float
    waited_s: float
    start_s: float
    samples: int

    @property
    def ms(self) -> float:
        """Milliseconds a step."""
        return 1e3 * self.wall_s / self.steps

    @property
    def samples_per_cpu_s(self) -> float:
        return self.steps * self.samples / self.cpu_s

    @property
    def data_wait(self) -> float:
        """Share of the time."""
        return self.waited_s / self.wall_s

    @property
    def cores(self) -> float:
        """That it kept busy."""
        return self.cpu_s / self.wall_s


class Arena:
    """Shards that all read, in a scratch folder; one epoch is a run.

    Args:
        root: the folder.
        steps: of a run.
        first: steps that are left out at its beginning.
        batch: of a worker.
    """

    def __init__(self, root: Path, steps: int, first: int, batch: int) -> None:
        self.root, self.steps, self.first, self.batch = root, steps, first, batch
        self.samples = steps * batch * WORKERS
        each = self.samples // SHARDS
        self.drawn = write_photo_shards(root / "drawn", self.samples // 2, each)
        self.shards = root / "shards"
        self.shards.mkdir()
        for number in range(SHARDS):
            for end in (".tar", "_stats.json"):
                drawn = self.drawn / f"{number % (SHARDS // 2):05d}{end}"
                (self.shards / f"{number:05d}{end}").symlink_to(drawn)

    def run(self, contestant: Contestant, precision: str) -> Run:
        """Run once, into an empty folder."""
        with tempfile.TemporaryDirectory(dir=self.root) as folder:
            output = Path(folder)
            line = shlex.split(
                contestant.line.format(**self._places(contestant, output, precision))
            )
            followed = Followed(line, _variables(line[0]))
            steps = contestant.steps(output, followed.lines)
        if len(steps) != self.steps:
            said = "\n".join(line.text for line in followed.lines[-100:])
            raise RuntimeError(f"{contestant.name}: {len(steps)} of {self.steps} steps\n{said}")
        return followed.steady(steps, self.first, self.batch * WORKERS)

    def _places(self, contestant: Contestant, output: Path, precision: str) -> dict[str, object]:
        config = output / "train.yaml"
        config.write_text(to_yaml(job(precision, self.batch)), encoding="utf-8")
        peers = contestant is THEIRS
        return {
            "python": sys.executable,
            "peer": environment.peers() / "bin" / "python" if peers else None,
            "batch": self.batch,
            "here": HERE,
            "config": config,
            "shards": self.shards,
            "tars": f"{self.shards}/{{00000..{SHARDS - 1:05d}}}.tar",
            "samples": self.samples,
            "theirs": THEIR_NAMES[precision],
            "output": output,
        }


def job(precision: str, batch: int) -> Job:
    """What clipray trains: every step decodes its images."""
    loader = LoaderConfig(batch_size=batch * WORKERS, cache_mb=0)
    return Job.model_validate(
        {"model": MODEL, "epochs": 1, "precision": precision, "loader": loader}
    )


class Followed:
    """A command, run to its end.

    Attributes:
        lines: what it printed.
        looks: times, and CPU seconds that its process tree had used.
    """

    def __init__(self, line: list[str], env: Mapping[str, str]) -> None:
        self.lines: list[Line] = []
        self.looks: list[tuple[float, float]] = []
        self._began = time.time()
        with subprocess.Popen(
            line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        ) as process:  # fmt: skip
            ended = Event()
            looking = Thread(target=self._look, args=(Tree(process.pid), ended))
            looking.start()
            assert process.stdout
            try:
                for text in process.stdout:
                    self.lines.append(Line(time.time(), text.rstrip()))
            except BaseException:
                process.terminate()  # in a session of its own, it hears no Ctrl-C
                raise
            finally:
                ended.set()
                looking.join()

    def steady(self, steps: list[Step], first: int, samples: int) -> Run:
        """Of all steps, those between the first and the last few."""
        inside = steps[first - 1 : len(steps) - LAST]
        began, ended = inside[0].at, inside[-1].at
        used = np.interp([began, ended], *zip(*self.looks, strict=True))
        waited = sum(step.waited for step in inside[1:])
        start_s = steps[0].at - self._began
        cpu_s = float(used[1] - used[0])
        return Run(len(inside) - 1, ended - began, cpu_s, waited, start_s, samples)

    def _look(self, tree: Tree, ended: Event) -> None:
        while not ended.wait(LOOK_S):
            self.looks.append((time.time(), tree.cpu_s()))


def _variables(program: str) -> Mapping[str, str]:
    threads = {"OMP_NUM_THREADS": "1"}
    if program == sys.executable:
        return os.environ | threads | {"PYTHONPATH": str(ROOT)}
    return environment.environment() | threads
