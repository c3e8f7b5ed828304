"""The pages of the documentation, the blocks of code in them, and the commands in those."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[1]
FOLDERS = ("", "jobs", "serve_configs", "cluster", "tests/benchmarks")
PAGES = [
    str(page.relative_to(ROOT))
    for folder in FOLDERS
    for page in sorted((ROOT / folder).glob("*.md"))
    if page.name != "CHANGELOG.md"
]

_FENCE = re.compile(r"^( *)```([^\n`]*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_HEREDOC = re.compile(r"(<<-?\s*['\"]?(\w+)['\"]?[^\n]*\n).*?^\2$", re.MULTILINE | re.DOTALL)
_WORD = r"""(?:'[^']*' | "(?:\\.|[^"\\])*" | \\. | [^\s'"\\;&|()<>\#] | (?<=\S)\#)+"""
_TOKEN = re.compile(rf"\d?>+&? | <+ | {_WORD} | \#[^\n]* | [;&|()\n]+", re.VERBOSE | re.DOTALL)
_BEFORE = re.compile(r"\w+=.*|do|then|else|!|\{", re.DOTALL)  # what may stand before a command


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: its file, from the root of the repository.
        line: of its first line of code, counted from 1.
        language: what stands behind the fence.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def where(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def typed(self) -> str:
        """What somebody types of it; in a console that is what stands behind `$`."""
        if self.language == "console":
            return "".join(re.findall(r"^\$ ((?:.*\\\n)*.*\n)", self.text, re.MULTILINE))
        return self.text if self.language == "sh" else ""


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, text: str | None = None) -> list[Block]:
    """All blocks of a page, in order."""
    text = read(page) if text is None else text
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, match[2].strip(), dedent(match[3]))
        for match in _FENCE.finditer(text)
    ]


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell's text; those of nested quotes are one word."""
    words: list[str] = []
    text = _HEREDOC.sub(r"\1", text.replace("\\\n", " "))
    tokens = iter([*(match[0] for match in _TOKEN.finditer(text) if match[0][0] != "#"), "\n"])
    for token in tokens:
        if token[-1] in "<>" or token[-2:] == ">&":
            next(tokens)  # where to, or from
        elif token[0] not in ";&|()\n":
            words += shlex.split(token)[:1]
        elif bare := _bare(words):
            yield bare
            words = []
        else:
            words = []


def named(words: list[str], *names: str) -> Iterator[list[str]]:
    """What follows a command's name in `words`; a job's script is the command that it runs."""
    if words[:3] == ["ray", "job", "submit"] and "--" in words:
        yield from named(words[words.index("--") + 1 :], *names)
    if words[0] in names:
        yield words[1:]
    elif "clipray" in names and (
        script := re.fullmatch(r"python jobs/(\w+)\.py", " ".join(words[:2]))
    ):
        yield [script[1], *words[2:]]


def _bare(words: list[str]) -> list[str]:
    while words and _BEFORE.fullmatch(words[0]):
        words = words[1:]
    return words
