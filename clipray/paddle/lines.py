"""What `infer_imgs` and `texts` name, as samples that go by their lines.

In PaddleClas a row of an index is a line: the path of an image as it was given, with delimiter and
label where a list has them, or a text. Here the line is the key of the row, so that rows are
added, replaced and removed by it. An image inside a tar or a parquet has no path of its own; its
line is the path of the shards with its key behind.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Self

from clipray import images, uri
from clipray.dataset import Found, find_shards
from clipray.errors import InputError
from clipray.samples import Entry, Listing, Location, as_unicode
from clipray.shards import Shard
from clipray.uri import AnyPath

MAX_FILE_BYTES = 4 << 30
LINES_PER_SHARD = 10_000
SOURCE = "images"  # a name for `find_shards`, which is then taken off again


@dataclass(frozen=True, slots=True)
class Lined:
    """A shard whose samples go by their lines.

    Attributes:
        shard: as it was found.
        given: what the user wrote.
    """

    shard: Shard
    given: str

    @property
    def name(self) -> str:
        """That of the shard."""
        return self.shard.name

    @property
    def path(self) -> AnyPath:
        """That of the shard."""
        return self.shard.path

    @property
    def expected(self) -> int | None:
        """As the shard says."""
        return self.shard.expected

    @property
    def members(self) -> tuple[str, ...]:
        """Those of the shard."""
        return self.shard.members

    def signature(self) -> str:
        """That of the shard."""
        return self.shard.signature()

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """As the shard does it."""
        with self.shard.at_hand() as here:
            yield replace(self, shard=here)

    def list(self) -> Listing:
        """The samples of the shard."""
        listing = self.shard.list()
        entries = tuple(replace(entry, key=self._line(entry)) for entry in listing.entries)
        return replace(listing, entries=entries)

    def _line(self, entry: Entry) -> str:
        if entry.image and images.is_picture(entry.image.path.name):
            return as_unicode(_as_given(self.given, entry.image.path))
        return as_unicode(f"{_tidy(self.given)}/{entry.key.removeprefix(f'{SOURCE}/')}")


@dataclass(frozen=True, slots=True)
class ListShard:
    """Some lines of a file.

    Attributes:
        path: the file.
        number: how many shards of it come before.
        entries: one a line.
    """

    path: Path
    number: int
    entries: tuple[Entry, ...]

    members: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """`<file>/<number>`."""
        return as_unicode(f"{self.path.name}/{self.number:05d}")

    @property
    def expected(self) -> int:
        """One sample a line."""
        return len(self.entries)

    def signature(self) -> str:
        """The lines themselves."""
        text = "\n".join(entry.key for entry in self.entries)
        return f"{self.expected} lines, {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    def list(self) -> Listing:
        """The samples."""
        return Listing(self.entries)

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """They are."""
        yield self


def find_images(given: str, delimiter: str) -> Found:
    """The shards behind `infer_imgs`.

    Args:
        given: an image, a folder of images or of img2dataset's output, a shard of it, or a `.txt`
            with one image path a line, seen from the working directory.
        delimiter: stands before the label of a line, where it has one.

    Raises:
        InputError: there is no image.
    """
    path = Path(given)
    if path.suffix == ".txt" and path.is_file():
        entries = (_listed(line, delimiter) for line in read_lines(given))
        return Found(tuple(_cut(path, entries)))
    found = find_shards([f"{SOURCE}={given}"])
    return replace(found, shards=tuple(Lined(shard, given) for shard in found.shards))


def find_texts(given: str) -> Found:
    """The shards of the different lines of a text file.

    Raises:
        InputError: no such file, or no text in it.
    """
    entries = (Entry(line, columns={"caption": line}) for line in dict.fromkeys(read_lines(given)))
    return Found(tuple(_cut(Path(given), entries)))


def removed_lines(given: str, delimiter: str) -> list[str]:
    """The lines of images that are to be removed; those of a list need no files any more.

    Raises:
        InputError: there is no image.
    """
    if images.is_picture(given) and not Path(given).exists():
        return [_tidy(given)]
    shards = find_images(given, delimiter).shards
    return [entry.key for shard in shards for entry in shard.list().entries]


def read_lines(given: str) -> list[str]:
    """The lines of a file that are not empty, without white space around them.

    Raises:
        InputError: no such file, one that is no text, or nothing in it.
    """
    path = Path(given)
    if not path.is_file():
        raise InputError(f"{given}: no such file; expected one with a text a line")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{given}: larger than {MAX_FILE_BYTES >> 30} GiB; cut it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise InputError(f"{given}: cannot be read as UTF-8 ({error})") from None
    lines = [stripped for line in text.split("\n") if (stripped := line.strip())]
    if not lines:
        raise InputError(f"{given}: empty; expected one text a line")
    return lines


def _listed(line: str, delimiter: str) -> Entry:
    path, sign, label = line.partition(delimiter)
    key = _tidy(path) + sign + label
    columns = {"path": _tidy(path)} | ({"label": label} if sign else {})
    file = Path(path).resolve()
    size = file.stat().st_size if file.is_file() else 0
    return Entry(as_unicode(key), Location(file, 0, size), columns=columns)


def _cut(path: Path, entries: Iterable[Entry]) -> Iterator[ListShard]:
    different: Sequence[Entry] = list({entry.key: entry for entry in entries}.values())
    for number, start in enumerate(range(0, len(different), LINES_PER_SHARD)):
        yield ListShard(path, number, tuple(different[start : start + LINES_PER_SHARD]))


def _as_given(given: str, path: AnyPath) -> str:
    root = uri.at(given)
    inside = path == root or root in path.parents
    return str(Path(given) / uri.below(path, root)) if inside and uri.is_local(path) else str(path)


def _tidy(given: str) -> str:
    """A path without `./` before it and `/` behind it."""
    return given if "://" in given else str(Path(given))
