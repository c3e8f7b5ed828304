"""What a query costs when it is asked over HTTP: `python -m tests.benchmarks.serving`.

All services run at once and are asked in turn, by a process of its own. What counts is the CPU time
of a service's whole process tree, daemons included, divided by its queries. clip-retrieval runs as
it is installed, by its own command line; it is given the weights file of our random model, so that
it downloads none. The plain server is what one writes by hand where nothing more is needed; LanceDB
and Chroma, which are libraries, run in process behind the same.
"""

import argparse
import json
import logging
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import torch

from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.manifest import ModelSource
from tests.benchmarks.encoding import CAPTIONS
from tests.benchmarks.load import Load, Window
from tests.benchmarks.served import Served, served, texts
from tests.benchmarks.services import RECIPES, Recipe, Service
from tests.benchmarks.serving_tables import (
    ALONE,
    CONCURRENCIES,
    NEW,
    REPEATED,
    Results,
    Run,
    contests,
    report,
)
from tests.benchmarks.theme import Pace, keep, parse, parser
from tests.benchmarks.tree import Watch

log = logging.getLogger(__name__)

SETTLE_S = 10
IDLE_S = 20
TEXTS = 20_000  # more than any service encodes in time


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--rows", type=int, default=100_000)
    made.add_argument("--queries", type=int, default=500)
    made.add_argument("--seconds", type=float, default=3, help="of one measurement")
    made.add_argument("--only", nargs="+", default=[""], help="services whose name holds one")
    made.add_argument("--work", type=Path, help="where rows and indices are kept for next time")
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    chosen = [recipe for recipe in RECIPES if any(only in recipe.name for only in args.only)]
    if args.quick:
        args.rows, args.queries, args.seconds = 5_000, 50, 1.0
        chosen = [recipe for recipe in chosen if not recipe.peers and "1 group" not in recipe.name]
    with tempfile.TemporaryDirectory() as scratch:
        content = served(args.work or Path(scratch), args.rows, args.queries)
        results = measure(content, chosen, args, pace)
        lines = report(content, results, args.seconds)
    keep(args.output, "serving", lines, contests(results))


def measure(content: Served, chosen: list[Recipe], args: argparse.Namespace, pace: Pace) -> Results:
    """Start all services, leave them alone for a while, then ask them in turn."""
    results = Results()
    encoder = open_encoder(ModelSource(name=str(content.model)), EncoderOptions(device="cpu"))
    torch.set_num_threads(1)
    with Load() as load, ExitStack() as opened:
        services = []
        for recipe in chosen:
            services.append(opened.enter_context(Service(recipe, content)))
            log.info("%s: answers after %.1f s", recipe.name, services[-1].start_s)
        idle(services, args.seconds if args.quick else IDLE_S, results)
        for service in services:
            give_requests(load, service, content)
            results.recall[service.name] = content.recall(load.first_pass(service.name))
        for number in pace.rounds():
            ask_vectors(load, services, args.seconds, results)
            ask_texts(load, services, args.seconds, results)
            encode_alone(encoder, args.seconds, results)
            log.info("round %d done", number + 1)
        results.memory = {service.name: service.tree.memory(content.index) for service in services}
    return results


def idle(services: list[Service], seconds: float, results: Results) -> None:
    """Cores that each service takes when nobody asks it."""
    time.sleep(SETTLE_S)
    before = {service.name: service.tree.cpu_s() for service in services}
    began = time.monotonic()
    time.sleep(seconds)
    for service in services:
        used = service.tree.cpu_s() - before[service.name]
        results.idle[service.name] = used / (time.monotonic() - began)
        results.start_s[service.name] = service.start_s


def give_requests(load: Load, service: Service, content: Served) -> None:
    """Vectors, and texts where the service encodes: some that come again and again, others once."""
    recipe = service.recipe

    def give(name: str, bodies: list[dict[str, object]], *, once: bool = False) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
            json.dump(bodies, file)
            file.flush()
            load.open(name, service.port, recipe.path, Path(file.name), once=once)

    give(recipe.name, [recipe.body(vector) for vector in content.queries.tolist()])
    if recipe.encodes:
        give(f"{recipe.name} {NEW}", list(map(recipe.text_body, texts(TEXTS))), once=True)
        give(f"{recipe.name} {REPEATED}", list(map(recipe.text_body, CAPTIONS)))


def ask_vectors(load: Load, services: list[Service], seconds: float, results: Results) -> None:
    """Each service, with one query under way and with many."""
    for concurrency in CONCURRENCIES:
        for service in services:
            run = under_load(load, service, service.name, concurrency, seconds)
            results.vectors[service.name, concurrency].append(run)


def ask_texts(load: Load, services: list[Service], seconds: float, results: Results) -> None:
    """Those that encode, likewise."""
    for concurrency in CONCURRENCIES:
        for kind in (NEW, REPEATED):
            for service in services:
                if service.recipe.encodes:
                    target = f"{service.name} {kind}"
                    run = under_load(load, service, target, concurrency, seconds)
                    results.texts[service.name, kind, concurrency].append(run)


def under_load(load: Load, service: Service, target: str, concurrency: int, seconds: float) -> Run:
    """Load on one service, and what its process tree used meanwhile."""
    with Watch(service.tree):
        before = service.tree.cpu_s()
        window = load.run(target, concurrency, seconds)
        used = service.tree.cpu_s() - before
    if window.failed:
        log.warning("%s, %d at once: %s", target, concurrency, window.failed)
    return Run(window, used)


def encode_alone(encoder: Encoder, seconds: float, results: Results) -> None:
    """What encoding costs without a service: texts one at a time, and as many as could wait."""
    drawn = texts(TEXTS)
    for batch in CONCURRENCIES:
        took: list[float] = []
        used, began = time.process_time(), time.perf_counter()
        while (start := time.perf_counter()) < began + seconds:
            encoder.encode_texts([drawn.pop() for _ in range(batch)])
            took.append(time.perf_counter() - start)
        used = time.process_time() - used
        window = Window.of(took, time.perf_counter() - began, 0.0, {}, each=batch)
        results.texts[ALONE, NEW, batch].append(Run(window, used))


if __name__ == "__main__":
    main()
