"""How long from raw shards to the first answer: `python -m tests.benchmarks.first_answer`.

clipray embeds, indexes and serves; clip-retrieval infers, indexes and serves as back. Both start
from the same shards with the same random weights, each verb by its own command line, and the clock
stops when a query by vector is answered over HTTP.
"""

import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clipray import __version__
from tests.benchmarks.cost import Cost, cost
from tests.benchmarks.embedding import EMBED, INFERENCE, OURS, THEIRS, Arena, prepare
from tests.benchmarks.machine import machine, versions
from tests.benchmarks.services import answer, end, free_port
from tests.benchmarks.theme import Contest, Pace, keep, parse, parser, spread
from tests.benchmarks.tree import Tree
from tests.peers import environment

log = logging.getLogger(__name__)

ROOT = Path(__file__).parents[2]
DIM = 512
K = 10
START_S = 240
LOOK_S = 0.1

BUILD = "{python} -m clipray.cli index build --embeddings {output} --index {index}"
SERVE = "{python} -m clipray.cli serve --index rows={index} --port {port}"
THEIR_BUILD = (
    "{peer} -m clip_retrieval.cli index --embeddings_folder {output} --index_folder {index} "
    "--max_index_memory_usage 4G --current_memory_available 8G --image_subfolder img_emb"
)
BACK = (
    "{peer} -m clip_retrieval.cli back --indices_paths {listed} --port {port} "
    "--clip_model open_clip:ViT-B-32/{weights} --provide_aesthetic_embeddings False "
    "--enable_mclip_option False"
)


@dataclass(frozen=True)
class Way:
    """Command lines, and the query that the service is asked first."""

    name: str
    verbs: Mapping[str, str]
    service: str
    path: str
    body: Mapping[str, object]


VECTOR = [DIM**-0.5] * DIM
CLIPRAY = Way(
    "clipray",
    {"embed": EMBED + " --precision bf16", "index": BUILD},
    SERVE,
    "/search",
    {"embedding": VECTOR, "k": K, "index": "rows"},
)
PEER = Way(
    "clip-retrieval",
    {"embed": INFERENCE, "index": THEIR_BUILD},
    BACK,
    "/knn-service",
    {"embedding_input": VECTOR, "modality": "image", "num_images": K, "indice_name": "rows"},
)
WAYS = (CLIPRAY, PEER)

Costs = dict[str, dict[str, list[Cost]]]  # by way and step


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--images", type=int, default=500, help="a multiple of 2")
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    ways = WAYS
    if args.quick:
        args.images, ways = 16, (CLIPRAY,)
    costs: Costs = {way.name: {} for way in ways}
    with tempfile.TemporaryDirectory() as scratch:
        arena = prepare(Path(scratch), args.images, tiny=args.quick)
        for number in pace.rounds():
            for way in ways:
                for step, spent in run(arena, way):
                    costs[way.name].setdefault(step, []).append(spent)
                    log.info("%s, %s: %s", way.name, step, spent)
            lines = [*header(arena, ways, number + 1), *table(costs)]
            keep(args.output, "first_answer", lines, contests(costs))


def run(arena: Arena, way: Way) -> Iterator[tuple[str, Cost]]:
    """Every step, the service up to its first answer, and all of it."""
    folder = Path(tempfile.mkdtemp(dir=arena.root))
    named = arena.places(1, folder / "output") | {
        "index": folder / "index", "port": free_port(), "listed": folder / "listed.json",
        "peer": environment.peers() / "bin" / "python" if way is PEER else None,
    }  # fmt: skip
    env = environment.environment() if way is PEER else os.environ | {"PYTHONPATH": str(ROOT)}
    spent = []
    for step, line in way.verbs.items():
        spent.append(cost(shlex.split(line.format(**named)), env, ROOT, folder / "log"))
        yield step, spent[-1]
    listed = {"rows": str(folder / "index")}
    (folder / "listed.json").write_text(json.dumps(listed), encoding="utf-8")
    spent.append(first_answer(shlex.split(way.service.format(**named)), env, way, named["port"]))
    yield "serve to the first answer", spent[-1]
    cpu_s, wall_s = (sum(getattr(each, what) for each in spent) for what in ("cpu_s", "wall_s"))
    yield "all", Cost(cpu_s, wall_s)


def first_answer(line: list[str], env: Mapping[str, str], way: Way, port: int) -> Cost:
    """Start a service, ask it until it answers with rows, and end it."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            line, env=env, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )
        tree = Tree(process.pid)
        try:
            while not answers(way, port):
                tree.cpu_s()
                if process.poll() is not None or time.monotonic() > began + START_S:
                    said.seek(0)
                    raise RuntimeError(f"{way.name} does not answer:\n{said.read()[-3000:]}")
                time.sleep(LOOK_S)
            return Cost(tree.cpu_s(), time.monotonic() - began)
        finally:
            end(process, tree)


def answers(way: Way, port: int) -> bool:
    """Whether it answers, and with rows."""
    found = answer(port, way.path, way.body)
    return bool(found["matches"] if isinstance(found, dict) else found)


def table(costs: Costs) -> Iterator[str]:
    """One line a step."""
    yield "| step | who | wall s, median | min | max | CPU s, median | min | max |"
    yield "|---|---|---|---|---|---|---|---|"
    for step in next(iter(costs.values())):
        for name, steps in costs.items():
            wall, cpu = ([getattr(c, what) for c in steps[step]] for what in ("wall_s", "cpu_s"))
            yield f"| {step} | {name} | {spread(wall, '.1f')} | {spread(cpu, '.1f')} |"


def contests(costs: Costs) -> Iterator[Contest]:
    """All steps together, and each."""
    if PEER.name in costs:
        for step in costs[CLIPRAY.name]:
            both = [costs[way.name][step] for way in WAYS]
            for unit, what in (("s", "wall_s"), ("CPU s", "cpu_s")):
                figures = [[getattr(each, what) for each in spent] for spent in both]
                yield Contest(f"first answer: {step}", unit, CLIPRAY.name, PEER.name, *figures)


def header(arena: Arena, ways: tuple[Way, ...], rounds: int) -> list[str]:
    peers = "none"
    if PEER in ways:
        peers = versions(environment.peers() / "bin" / "python", (*THEIRS, "autofaiss"))
    return [
        f"# From raw shards to the first answer, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"clipray {__version__}: {versions(Path(sys.executable), OURS)}. Peers: {peers}.",
        "",
        f"{machine()}; Python {platform.python_version()}. {arena.name} with random weights over "
        f"{arena.images} photo-like JPEGs of 256 px in 2 tars; {rounds} interleaved rounds, every "
        "step by its command line, as many threads as it likes. clipray embeds in bf16 and builds "
        "with `--method auto`; clip-retrieval infers in fp32 and lets autofaiss choose. Each of "
        "clipray's verbs starts Ray anew, which is much of the time where the data are few.",
        "",
    ]


if __name__ == "__main__":
    main()
