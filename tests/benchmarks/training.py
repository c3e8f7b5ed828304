"""What a step of training costs, beside what others use: `python -m tests.benchmarks.training`.

clipray trains under Ray, and the same loop under torchrun; open_clip's own trainer runs beside
them. All read the same shards and train the same model from random weights, in turns, each as a
process tree of its own. Counted are steps in the middle of a run, when the loaders are ahead.
"""

import argparse
import logging
import platform
import tempfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.training_runs import CONTESTANTS, LAST, THEIR_NAMES, Arena, Contestant
from tests.benchmarks.training_tables import Results, report

log = logging.getLogger(__name__)

FIRST = 10  # steps left out at the beginning


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=30, help="of a run; 13 are not counted")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--precisions", nargs="+", default=list(THEIR_NAMES), choices=THEIR_NAMES)
    parser.add_argument("--quick", action="store_true", help="8 steps of fp32, no table kept")
    parser.add_argument("--only", default="", help="contestants whose name holds this")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results")
    args = parser.parse_args()
    if args.steps <= FIRST + LAST:
        parser.error(f"--steps {args.steps}: expected more than {FIRST + LAST}")
    first = FIRST
    if args.quick:
        args.steps, args.rounds, args.precisions, first = 8, 1, ["fp32"], 3
    chosen = [contestant for contestant in CONTESTANTS if args.only in contestant.name]
    logging.basicConfig(format="%(asctime)s %(message)s")
    log.setLevel(logging.INFO)
    with tempfile.TemporaryDirectory() as scratch:
        arena = Arena(Path(scratch), args.steps, first)
        for lines in measure(arena, chosen, args.precisions, args.rounds):
            print("\n".join(lines))  # noqa: T201
            if not args.quick:
                keep(args.output, lines)


def measure(
    arena: Arena, chosen: list[Contestant], precisions: list[str], rounds: int
) -> Iterator[list[str]]:
    """The table after each round; in a round, each contestant runs once a precision."""
    results: Results = {(p, contestant.name): [] for p in precisions for contestant in chosen}
    for number in range(rounds):
        for precision in precisions:
            for contestant in chosen:
                run = arena.run(contestant, precision)
                results[precision, contestant.name].append(run)
                log.info("%s, %s: %s", contestant.name, precision, run)
        yield report(arena, results, number + 1)


def keep(folder: Path, lines: list[str]) -> None:
    """Write the dated table; after each round, as rounds are long."""
    folder.mkdir(parents=True, exist_ok=True)
    name = f"training_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}.md"
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
