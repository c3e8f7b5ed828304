"""Every link of the documentation leads somewhere."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)")
FENCE = re.compile(r"^(```+).*?^\1$", re.MULTILINE | re.DOTALL)
AWAY = ("http://", "https://", "mailto:")


def pages():
    """All Markdown files that belong to the project."""
    line = [
        "git",
        "-C",
        str(ROOT),
        "ls-files",
        "--cached",
        "--others",
        "--exclude-standard",
        "*.md",
    ]
    listed = subprocess.run(line, capture_output=True, text=True, check=False)
    found = [ROOT / name for name in listed.stdout.splitlines()]
    return [page for page in found if page.is_file()] or [ROOT / "README.md", *ROOT.glob("*/*.md")]


def prose(page):
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """What GitHub calls the headings of a page."""
    found = []
    for heading in re.findall(r"^#+ (.+?)\s*$", prose(page), re.MULTILINE):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        found.append(f"{name}-{found.count(name)}" if name in found else name)
    return found


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page):
    for link in LINK.findall(prose(page)):
        if not link.startswith(AWAY):
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link


def test_a_heading_is_called_as_on_github(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A + B: `c d`\n## On [a link](x.md)\n```\n# no heading\n```\n## open_clip\n# A + B: c d\n"
    )
    assert anchors(page) == ["a--b-c-d", "on-a-link", "open_clip", "a--b-c-d-1"]
