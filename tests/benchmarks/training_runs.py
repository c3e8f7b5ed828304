"""Trainers that run in turns: when each step ended, and what the process tree had used by then."""

import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from signal import SIGCONT, SIGKILL, SIGSTOP, Signals
from threading import Thread

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
DRAWN, PER_SHARD = 8, 64  # shards that are drawn, and images of each
SHARDS = 64 * DRAWN  # what is drawn, again and again
FIRST = 4  # steps before the first turn
FEWEST = 3  # steps of a turn
SETTLE_S = 1.0  # in a turn, until a step counts
END_S = 30.0

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
    "--dist-backend gloo --log-every-n-steps 1 --zeroshot-frequency 0 --save-frequency 0 "
    "--logs {output} --name run"
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
    """A turn of a trainer.

    Attributes:
        steps: in it.
        wall_s: of it.
        cpu_s: of the whole process tree, in it.
        waited_s: of it, the first rank waited for batches.
        start_s: once, from the start of the command to the end of the first step.
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
    """Shards that all read, in a scratch folder; no run comes to their end.

    Args:
        root: the folder.
        batch: of a worker.
        turn_s: how long a contestant runs before the next does.
    """

    def __init__(self, root: Path, batch: int, turn_s: float) -> None:
        self.root, self.batch, self.turn_s = root, batch, turn_s
        self.drawn = write_photo_shards(root / "drawn", DRAWN * PER_SHARD, PER_SHARD)
        self.shards = root / "shards"
        self.shards.mkdir()
        for number in range(SHARDS):
            for end in (".tar", "_stats.json"):
                drawn = self.drawn / f"{number % DRAWN:05d}{end}"
                (self.shards / f"{number:05d}{end}").symlink_to(drawn)

    @contextmanager
    def runner(self, contestant: Contestant, precision: str) -> Iterator["Runner"]:
        """Start it, into an empty folder; after its first steps it waits for its turn."""
        with tempfile.TemporaryDirectory(dir=self.root, ignore_cleanup_errors=True) as folder:
            output = Path(folder)
            line = shlex.split(
                contestant.line.format(**self._places(contestant, output, precision))
            )
            made = Runner(line, _variables(line[0]), lambda lines: contestant.steps(output, lines))
            with closing(made):
                made.warm_up()
                yield made

    def turn(self, runner: "Runner") -> Run:
        """Let it run for a turn, while all others stand still."""
        return runner.turn(self.turn_s, self.batch * WORKERS)

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
            "samples": SHARDS * PER_SHARD,
            "theirs": THEIR_NAMES[precision],
            "output": output,
        }


def job(precision: str, batch: int) -> Job:
    """What clipray trains: every step decodes its images, and no checkpoint falls into a turn."""
    loader = LoaderConfig(batch_size=batch * WORKERS, cache_mb=0)
    checkpoints = {"every_minutes": 1e6}
    return Job.model_validate(
        {"model": MODEL, "epochs": 1, "precision": precision, "loader": loader,
         "checkpoints": checkpoints}
    )  # fmt: skip


class Runner:
    """A trainer's process tree, which stands still until it is its turn.

    Args:
        line: command that starts it.
        env: its variables.
        steps: what it has done so far, by what it printed.

    Attributes:
        start_s: from the start of the command to the end of the first step.
    """

    def __init__(
        self, line: list[str], env: Mapping[str, str], steps: Callable[[list[Line]], list[Step]]
    ) -> None:
        self.start_s = 0.0
        self._steps = steps
        self._lines: list[Line] = []
        self._looks: list[tuple[float, float]] = []
        self._began = time.time()
        self._process = subprocess.Popen(
            line, env=env, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            errors="replace", start_new_session=True,
        )  # fmt: skip
        self._tree = Tree(self._process.pid)
        self._reader = Thread(target=self._read)
        self._reader.start()

    def warm_up(self) -> None:
        """Wait for its first steps."""
        while len(steps := self._after(0)) < FIRST:
            self._look()
        self.start_s = steps[0].at - self._began
        self._signal(SIGSTOP)

    def turn(self, seconds: float, samples: int) -> Run:
        """Run for so long, or longer for a few steps; counted is from the first that ends."""
        began = time.time()
        self._signal(SIGCONT)
        while time.time() < began + seconds or len(self._after(began + SETTLE_S)) < FEWEST:
            self._look()
        self._signal(SIGSTOP)
        inside = self._after(began + SETTLE_S)
        used = np.interp([inside[0].at, inside[-1].at], *zip(*self._looks, strict=True))
        return Run(
            steps=len(inside) - 1,
            wall_s=inside[-1].at - inside[0].at,
            cpu_s=float(used[1] - used[0]),
            waited_s=sum(step.waited for step in inside[1:]),
            start_s=self.start_s,
            samples=samples,
        )

    def close(self) -> None:
        """End it and all that came of it."""
        self._signal(SIGCONT)
        self._process.terminate()  # in a session of its own, it hears no Ctrl-C
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(END_S)
        self._signal(SIGKILL)
        self._reader.join()

    def _after(self, moment: float) -> list[Step]:
        """Steps that ended after it."""
        if self._process.poll() is not None:
            raise RuntimeError("\n".join(line.text for line in self._lines[-100:]))
        return [step for step in self._steps(self._lines) if step.at > moment]

    def _look(self) -> None:
        self._looks.append((time.time(), self._tree.cpu_s()))
        time.sleep(LOOK_S)

    def _signal(self, number: Signals) -> None:
        for process in self._tree.live():
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _read(self) -> None:
        assert self._process.stdout
        for text in self._process.stdout:
            self._lines.append(Line(time.time(), text.rstrip()))


def _variables(program: str) -> Mapping[str, str]:
    threads = {"OMP_NUM_THREADS": "1"}
    if program == sys.executable:
        return os.environ | threads | {"PYTHONPATH": str(ROOT)}
    return environment.environment() | threads
