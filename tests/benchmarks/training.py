"""What a step of training costs, beside what others use: `python -m tests.benchmarks.training`.

clipray trains under Ray, and the same loop under torchrun; open_clip's own trainer runs beside
them. All read the same shards and train the same model from random weights, each as a process tree
of its own. All are started, and then run in turns of seconds, while the others stand still: a
slower minute of the machine meets all alike.
"""

import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.theme import Pace, keep, parse, parser
from tests.benchmarks.training_runs import (
    BATCH,
    CONTESTANTS,
    THEIR_NAMES,
    THEIRS,
    Arena,
    Contestant,
)
from tests.benchmarks.training_tables import Results, contests, report

log = logging.getLogger(__name__)


def main() -> None:
    made = parser(__doc__, rounds=20)
    made.add_argument("--turn", type=float, default=15, help="seconds of a contestant in a round")
    made.add_argument("--batch", type=int, default=BATCH, help="of a worker")
    made.add_argument("--precisions", nargs="+", default=list(THEIR_NAMES), choices=THEIR_NAMES)
    made.add_argument("--only", default="", help="contestants whose name holds this")
    args = parse(made)
    chosen = [contestant for contestant in CONTESTANTS if args.only in contestant.name]
    if args.quick:
        args.turn, args.batch, args.precisions = 3, 2, ["fp32"]
        chosen = [contestant for contestant in chosen if contestant is not THEIRS]
    results: Results = {}
    with tempfile.TemporaryDirectory() as scratch:
        arena = Arena(Path(scratch), args.batch, args.turn)
        for precision in args.precisions:
            pace = Pace(args.rounds, args.minutes / len(args.precisions))
            results |= measure(arena, chosen, precision, pace)
            keep(args.output, "training", report(arena, results), contests(results))


def measure(arena: Arena, chosen: list[Contestant], precision: str, pace: Pace) -> Results:
    """Turns of each contestant, in one order: each has stood still as long as the others."""
    results: Results = {(precision, contestant.name): [] for contestant in chosen}
    with ExitStack() as started:
        runners = [
            (contestant, started.enter_context(arena.runner(contestant, precision)))
            for contestant in chosen
        ]
        for _ in pace.rounds():
            for contestant, runner in runners:
                run = arena.turn(runner)
                results[precision, contestant.name].append(run)
                log.info("%s, %s: %s", contestant.name, precision, run)
    return results


if __name__ == "__main__":
    main()
