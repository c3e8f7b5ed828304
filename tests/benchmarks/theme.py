"""What all themes of the benchmark share: options, pace, and what they leave behind.

A theme writes a dated table for people and, beside it, the same contests as JSON, of which
`tests.benchmarks.summary` makes the last table.
"""

import argparse
import json
import logging
import platform
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

log = logging.getLogger(__name__)

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Contest:
    """What the same thing cost us and another, round by round.

    Attributes:
        what: was measured.
        unit: of the figures.
        ours: who of ours; likewise `theirs`.
        mine: our figure of each round; likewise `others`.
        more: whether more is better.
    """

    what: str
    unit: str
    ours: str
    theirs: str
    mine: Sequence[float]
    others: Sequence[float]
    more: bool = False

    @property
    def times(self) -> float:
        """How many times better ours is, by the medians; below 1 it is a loss."""
        return self._better(median(self.mine), median(self.others))

    @property
    def spread(self) -> tuple[float, float]:
        """The same within the rounds, least and most."""
        each = [self._better(a, b) for a, b in zip(self.mine, self.others, strict=True)]
        return min(each), max(each)

    def _better(self, mine: float, other: float) -> float:
        return mine / other if self.more else other / mine


class Pace:
    """Rounds, as many as are wanted and as the time allows; the first is always run.

    Args:
        rounds: most of them.
        minutes: from now to the end of the last one.
    """

    def __init__(self, rounds: int, minutes: float) -> None:
        self._rounds = rounds
        self._deadline = time.monotonic() + 60 * minutes

    def rounds(self) -> Iterator[int]:
        """Their numbers; none is begun that would not end in time."""
        longest = 0.0
        for number in range(self._rounds):
            began = time.monotonic()
            if number and began + longest > self._deadline:
                log.warning("%d of %d rounds: there is no time for more", number, self._rounds)
                return
            yield number
            longest = max(longest, time.monotonic() - began)


def parser(doc: str | None, rounds: int) -> argparse.ArgumentParser:
    """Options that every theme has."""
    made = argparse.ArgumentParser(description=doc)
    made.add_argument("--rounds", type=int, default=rounds, help="most, interleaved")
    made.add_argument("--minutes", type=float, default=60, help="no round is begun that ends later")
    made.add_argument("--quick", action="store_true", help="tiny data, one round, ours and Faiss")
    made.add_argument("--output", type=Path, help="folder of the tables; none is kept if quick")
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """The options given; logging that tells what is going on, and an end that tidies up."""
    args = made.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    logging.basicConfig(format="%(asctime)s %(message)s")
    for name in ("tests.benchmarks", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    if args.output is None and not args.quick:
        args.output = RESULTS
    args.rounds = 1 if args.quick else args.rounds
    return args


def keep(folder: Path | None, name: str, lines: Iterable[str], contests: Iterable[Contest]) -> None:
    """Print the table; with a folder, write it and the contests there."""
    text = "\n".join(lines) + "\n"
    print(text)  # noqa: T201
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / dated(name)
        path.with_suffix(".md").write_text(text, encoding="utf-8")
        told = json.dumps([asdict(contest) for contest in contests], indent=1)
        path.with_suffix(".json").write_text(told + "\n", encoding="utf-8")


def dated(name: str) -> str:
    """Name of a theme's files, without their endings."""
    return f"{name}_{platform.machine()}_{datetime.now(UTC):%Y-%m-%d}"


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Cells: median, least, most."""
    return " | ".join(format(one, form) for one in (median(values), min(values), max(values)))
