"""The benchmark itself: every theme leaves a table that can be read, and one failure is no end."""

import json
import math
import re

import pytest

from tests.benchmarks import suite
from tests.benchmarks.summary import EVEN, Outcome, is_rival, summarize, verdict
from tests.benchmarks.theme import Contest, Pace, dated

COLUMNS = {
    "search": {"build", "CPU s", "effort", "recall", "queries a CPU second, median"},
    "shards": {"shards", "build, CPU s", "recall@10", "CPU ms a query, median"},
    "growth": {"index", "rows", "method", "median", "slope"},
    "embedding": {"contestant", "CPU ms an image, median", "images per CPU s", "wall s"},
    "first_answer": {"step", "who", "wall s, median", "CPU s, median"},
    "serving": {"service", "CPU ms a query, median", "queries a second", "p95 ms", "recall@10"},
    "training": {"contestant", "ms a step, median", "samples per CPU s, median", "data wait"},
}
QUICK = ("search", "shards", "growth")


def tables(text):
    """Of each table, its columns and its cells."""
    for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = ([c.strip() for c in line.strip("|").split("|")]
                          for line in block.splitlines())  # fmt: skip
        yield head, [dict(zip(head, row, strict=True)) for row in rows]


def number(cell):
    """Of a cell that begins with one; None for a name."""
    found = re.match(r"[-+]?(?:[\d.]+(?:e[-+]?\d+)?|nan|inf)\b", cell)
    return float(found[0]) if found else None


def check_table(theme, folder):
    """It has its columns, and figures in them that are finite."""
    found = list(tables((folder / f"{dated(theme)}.md").read_text(encoding="utf-8")))
    assert COLUMNS[theme] <= {name for head, _ in found for name in head}
    assert all(rows for _, rows in found)
    values = [number(cell) for _, rows in found for row in rows for cell in row.values()]
    figures = [value for value in values if value is not None]
    assert len(figures) > 3
    assert all(map(math.isfinite, figures))


def run_quickly(themes, folder):
    assert suite.main(["--quick", "--themes", *themes, "--output", str(folder)]) == 0
    for theme in themes:
        check_table(theme, folder)
    assert not list(folder.glob("*.log"))
    return (folder / f"{dated('summary')}.md").read_text(encoding="utf-8")


def test_light_themes_leave_tables_and_a_summary(tmp_path):
    summary = run_quickly(QUICK, tmp_path)
    assert all(f"| {theme} |" in summary for theme in QUICK)
    assert "faiss HNSW32" in summary


@pytest.mark.soak
def test_themes_that_need_torch_or_ray_leave_tables_too(tmp_path):
    run_quickly(set(COLUMNS) - set(QUICK), tmp_path)


def test_a_theme_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    themes = {"broken": "no_such_module", "fine": "theme"}  # which does nothing
    made = {name: suite.Theme(name, module, 1) for name, module in themes.items()}
    monkeypatch.setattr(suite, "THEMES", made)
    asked = ["--quick", "--themes", *themes, "--output", str(tmp_path)]
    assert suite.main(asked) == 1
    summary = (tmp_path / f"{dated('summary')}.md").read_text(encoding="utf-8")
    assert re.search(r"\| broken .* failed: exit 1", summary)
    assert re.search(r"\| fine .* done \|", summary)
    assert "no_such_module" in (tmp_path / "broken.log").read_text(encoding="utf-8")


def test_a_theme_that_takes_too_long_is_ended(tmp_path):
    line = [suite.sys.executable, "-c", "import time; time.sleep(60)"]
    assert suite.run(line, tmp_path / "log", 0.5) == "not done in 0 s"


def test_a_quick_run_never_writes_into_the_results():
    with pytest.raises(SystemExit):
        suite.main(["--quick"])


def test_losses_are_shown_as_plainly_as_wins(tmp_path):
    won = Contest("w", "CPU s", "clipray", "peer", [1.0, 1.0], [2.0, 3.0])
    lost = Contest("l", "a CPU s", "clipray", "peer", [1.0, 1.0], [2.0, 2.0], more=True)
    even = Contest("e", "s", "clipray", "peer", [1.0, 1.0], [1.5, 0.8])
    close = Contest("c", "s", "clipray", "peer", [1.0], [1.0 + EVEN / 2])
    own = Contest("o", "s", "clipray", "the same, 1 shard", [1.0], [0.5])
    found = [won, lost, even, close, own]
    assert [verdict(contest) for contest in found] == ["won", "lost", "even", "even", "lost"]
    assert not is_rival(own)
    told = [vars(contest) for contest in found]
    (tmp_path / f"{dated('t')}.json").write_text(json.dumps(told), encoding="utf-8")
    text = summarize(tmp_path, [Outcome("t", 60, 2)]).read_text(encoding="utf-8")
    assert "**1 won, 1 lost, 2 even**" in text
    assert "| t | l | a CPU s | clipray | 1 | peer | 2 | 0.50 (0.50 to 0.50) |  | × |" in text


def test_time_that_a_theme_did_not_need_is_for_those_that_come():
    themes = list(suite.THEMES)
    hour = sum(theme.minutes for theme in suite.THEMES.values())
    assert suite.share_of(themes[0], themes, hour) == suite.THEMES[themes[0]].minutes
    assert suite.share_of("serving", ["search", "serving", "training"], 40) == 18
    assert suite.share_of("training", ["search", "serving", "training"], 40) == 40


def test_no_round_is_begun_that_would_end_too_late():
    assert list(Pace(3, minutes=0).rounds()) == [0]
    assert list(Pace(3, minutes=1).rounds()) == [0, 1, 2]
