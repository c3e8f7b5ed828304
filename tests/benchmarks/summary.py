"""The last table of the benchmark: all contests of a day, wins and losses side by side."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

from tests.benchmarks.machine import machine
from tests.benchmarks.theme import Contest, dated

EVEN = 0.05  # closer than that, or a spread over 1, is neither won nor lost


@dataclass(frozen=True)
class Outcome:
    """How a theme went.

    Attributes:
        seconds: that it took.
        share: minutes that it may take.
        error: what went wrong, or nothing.
    """

    theme: str
    seconds: float
    share: float
    error: str = ""


def summarize(folder: Path, outcomes: Iterable[Outcome]) -> Path:
    """Write the table over what the themes left in the folder today."""
    path = folder / f"{dated('summary')}.md"
    lines = [*header(), *timetable(outcomes), "", *table(folder, outcomes)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def header() -> list[str]:
    return [
        f"# All themes, {datetime.now(UTC):%Y-%m-%d}",
        "",
        f"{machine()}. What is compared, on what data and with which versions stands in the table "
        "of each theme. A figure is the median of the rounds; *times better* is ours against "
        f"theirs, below 1 a loss, with its least and most within a round. Closer than {EVEN:.0%}, "
        "or now better and now worse, is called even.",
        "",
    ]


def timetable(outcomes: Iterable[Outcome]) -> Iterator[str]:
    yield "| theme | took, min | its share, min | |"
    yield "|---|---|---|---|"
    for each in outcomes:
        how = f"failed: {each.error}" if each.error else "done"
        yield f"| {each.theme} | {each.seconds / 60:.1f} | {each.share:g} | {how} |"


def table(folder: Path, outcomes: Iterable[Outcome]) -> Iterator[str]:
    """All contests, theme by theme, after a count of how they ended."""
    found = [(each.theme, contest) for each in outcomes for contest in read(folder, each.theme)]
    counted = Counter(verdict(contest) for _, contest in found if is_rival(contest))
    yield (
        f"**{counted['won']} won, {counted['lost']} lost, {counted['even']} even**, contests with "
        "ourselves left out."
    )
    yield ""
    yield (
        "| theme | what | unit | clipray | figure | other | figure | times better (least to most) "
        "| won | lost |"
    )
    yield "|" + "---|" * 10
    for theme, contest in found:
        least, most = contest.spread
        end = verdict(contest) if is_rival(contest) else ""
        won, lost = ("×" if end == name else "" for name in ("won", "lost"))
        yield (
            f"| {theme} | {contest.what} | {contest.unit} | {contest.ours} | "
            f"{median(contest.mine):.4g} | {contest.theirs} | {median(contest.others):.4g} | "
            f"{contest.times:.2f} ({least:.2f} to {most:.2f}) | {won} | {lost} |"
        )


def read(folder: Path, theme: str) -> list[Contest]:
    """What a theme left today; nothing when it failed before its first round ended."""
    path = folder / f"{dated(theme)}.json"
    if not path.is_file():
        return []
    return [Contest(**told) for told in json.loads(path.read_text(encoding="utf-8"))]


def verdict(contest: Contest) -> str:
    """won, lost or even."""
    least, most = contest.spread
    if abs(contest.times - 1) < EVEN or least < 1 < most:
        return "even"
    return "won" if contest.times > 1 else "lost"


def is_rival(contest: Contest) -> bool:
    """Whether the other is not clipray itself."""
    return not contest.theirs.startswith(("clipray", "the same"))
