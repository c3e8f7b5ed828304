"""What a step of training costs, beside what others use: `python -m tests.benchmarks.training`.

clipray trains under Ray, and the same loop under torchrun; open_clip's own trainer runs beside
them. All read the same shards and train the same model from random weights, in turns, each as a
process tree of its own. Counted are steps in the middle of a run, when the loaders are ahead.
"""

import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.benchmarks.theme import Contest, Pace, keep, parse, parser
from tests.benchmarks.training_runs import (
    BATCH,
    CONTESTANTS,
    LAST,
    THEIR_NAMES,
    THEIRS,
    Arena,
    Contestant,
)
from tests.benchmarks.training_tables import Results, contests, report

log = logging.getLogger(__name__)

FIRST = 6  # steps left out at the beginning


def main() -> None:
    made = parser(__doc__, rounds=3)
    made.add_argument("--steps", type=int, default=20, help="of a run; 9 are not counted")
    made.add_argument("--batch", type=int, default=BATCH, help="of a worker")
    made.add_argument("--precisions", nargs="+", default=list(THEIR_NAMES), choices=THEIR_NAMES)
    made.add_argument("--only", default="", help="contestants whose name holds this")
    args = parse(made)
    pace = Pace(args.rounds, args.minutes)
    if args.steps <= FIRST + LAST:
        made.error(f"--steps {args.steps}: expected more than {FIRST + LAST}")
    chosen = [contestant for contestant in CONTESTANTS if args.only in contestant.name]
    first = FIRST
    if args.quick:
        args.steps, args.batch, args.precisions, first = 8, 2, ["fp32"], 3
        chosen = [contestant for contestant in chosen if contestant is not THEIRS]
    with tempfile.TemporaryDirectory() as scratch:
        arena = Arena(Path(scratch), args.steps, first, args.batch)
        for lines, found in measure(arena, chosen, args.precisions, pace):
            keep(args.output, "training", lines, found)  # rounds are long


def measure(
    arena: Arena, chosen: list[Contestant], precisions: list[str], pace: Pace
) -> Iterator[tuple[list[str], list[Contest]]]:
    """The table after each round; in a round, each contestant runs once a precision."""
    results: Results = {(p, contestant.name): [] for p in precisions for contestant in chosen}
    for number in pace.rounds():
        for precision in precisions:
            for contestant in chosen:
                run = arena.run(contestant, precision)
                results[precision, contestant.name].append(run)
                log.info("%s, %s: %s", contestant.name, precision, run)
        yield report(arena, results, number + 1), list(contests(results))


if __name__ == "__main__":
    main()
