"""Folders of img2dataset shards, folders of images and text files, as shards of samples.

A source is cut into shards, and a shard lists its samples from headers, names and line ends alone.
What a sample says is not read here.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Protocol

from clipray import images, storage, tar
from clipray.errors import InputError
from clipray.samples import Entry, Listing, Location, as_unicode

IMAGES_PER_SHARD = 1_000  # of a plain folder
LINES_PER_SHARD = 10_000  # of a text file
SIGNED_BYTES = 64 << 10


class Shard(Protocol):
    """A part of a source that is read at once: a tar, or a slice of a folder or of a text file."""

    @property
    def name(self) -> str:
        """Stable name, which begins with that of the source."""
        ...

    @property
    def path(self) -> Path:
        """What is read: a file or a folder."""
        ...

    def signature(self) -> str:
        """A value that changes when the shard is replaced."""
        ...

    def list(self) -> Listing:
        """Find the samples; reads headers, names and line ends only."""
        ...


@dataclass(frozen=True, slots=True)
class TarShard:
    """A tar of img2dataset's `webdataset` output.

    Attributes:
        source: name of its source, the first part of every key.
        expected: number of samples that `_stats.json` promises, None where there is none.
    """

    source: str
    path: Path
    expected: int | None = None

    @property
    def name(self) -> str:
        """`<source>/<tar>`."""
        return as_unicode(f"{self.source}/{self.path.name}")

    def signature(self) -> str:
        """Size and ends: the first headers and the last members tell a tar of the same size."""
        size = self.path.stat().st_size
        starts = (0, max(0, size - SIGNED_BYTES))
        ends = [Location(self.path, start, SIGNED_BYTES).read(SIGNED_BYTES) for start in starts]
        return f"{size} bytes, {hashlib.sha256(b''.join(ends)).hexdigest()[:16]}"

    def list(self) -> Listing:
        """One entry a key; damage where the tar or the count is not whole."""
        try:
            scanned = tar.scan(self.path)
        except OSError as error:
            return Listing((), f"cannot be read ({error.strerror})")
        entries = tuple(self._entries(scanned.members))
        return Listing(entries, scanned.damage or self._miscount(entries))

    def _miscount(self, entries: Sequence[Entry]) -> str | None:
        if self.expected in (None, len(entries)):
            return None
        return f"holds {len(entries)} samples, its _stats.json says {self.expected}"

    def _entries(self, members: Iterable[tar.Member]) -> Iterator[Entry]:
        groups: dict[tuple[str, int], dict[str, Location]] = {}
        repeats: dict[str, int] = {}
        for member in members:
            key, kind = _split_name(member.name)
            if kind is None:
                continue
            group = groups.setdefault((key, repeats.get(key, 0)), {})
            if kind in group:  # the key comes again: another sample, not another member
                repeats[key] = repeats.get(key, 0) + 1
                group = groups.setdefault((key, repeats[key]), {})
            group[kind] = Location(self.path, member.offset, member.size)
        for (key, repeat), group in groups.items():
            yield Entry(as_unicode(f"{self.source}/{key}"), **group, duplicate=repeat > 0)


@dataclass(frozen=True, slots=True)
class FolderShard:
    """A slice of a folder's sorted image names, which are relative to it."""

    source: str
    path: Path
    names: tuple[str, ...]

    @property
    def name(self) -> str:
        """`<source>/<first image>`."""
        return as_unicode(f"{self.source}/{self.names[0]}")

    def signature(self) -> str:
        """Names and sizes."""
        listed = "\n".join(f"{name} {(self.path / name).stat().st_size}" for name in self.names)
        return f"{len(self.names)} files, {hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]}"

    def list(self) -> Listing:
        """One entry an image; its caption stands beside it in a `.txt` of the same stem."""
        return _listing(self._entries())

    def _entries(self) -> Iterator[Entry]:
        for name in self.names:
            path = self.path / name
            yield Entry(as_unicode(f"{self.source}/{name}"), _whole(path), _beside(path))


@dataclass(frozen=True, slots=True)
class TextShard:
    """A run of lines of a text file, from byte `start` on.

    Attributes:
        first: number of the first line, counted from 0; line n has the key `<source>/<n>`.
        count: how many lines.
    """

    source: str
    path: Path
    start: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """`<source>/<number of the first line>`."""
        return as_unicode(f"{self.source}/{self.first:09d}")

    def signature(self) -> str:
        """The lines themselves."""
        digest = hashlib.sha256()
        for _, line in self._lines():
            digest.update(line)
        return f"{self.count} lines, {digest.hexdigest()[:16]}"

    def list(self) -> Listing:
        """One entry a line; an empty one has no caption and is rejected later."""
        return _listing(self._entries())

    def _entries(self) -> Iterator[Entry]:
        for number, (offset, line) in enumerate(self._lines(), self.first):
            text = Location(self.path, offset, len(line))
            yield Entry(as_unicode(f"{self.source}/{number:09d}"), text=text)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            offset = self.start
            for line in islice(stream, self.count):
                yield offset, line
                offset += len(line)


@dataclass(frozen=True, slots=True)
class Found:
    """The shards of all inputs in their order, and what was passed over with the reason."""

    shards: tuple[Shard, ...]
    skipped: dict[str, str] = field(default_factory=dict)


def find_shards(inputs: Sequence[str]) -> Found:
    """Cut the inputs into shards.

    Args:
        inputs: folders of img2dataset tars, single tars, folders of images, or text files with
            one text a line; each may be given as `NAME=PATH`, the name is the path's last part
            by default.

    Raises:
        InputError: when an input is missing or empty, or two share a name.
    """
    shards: list[Shard] = []
    skipped: dict[str, str] = {}
    for source, path in _named_sources(inputs):
        found = _find_tars(source, path) or _find_images(source, path)
        if not found.shards and not found.skipped:
            raise InputError(
                f"{path}: no image and no .tar in it; expected img2dataset shards (NNNNN.tar) "
                f"or images ({', '.join(sorted(images.SUFFIXES))})"
            )
        shards.extend(found.shards)
        skipped.update(found.skipped)
    if not shards:
        raise InputError(f"nothing to read in {', '.join(inputs)}: {next(iter(skipped.items()))}")
    return Found(tuple(shards), skipped)


def _named_sources(inputs: Sequence[str]) -> list[tuple[str, Path]]:
    sources: dict[str, Path] = {}
    for given in inputs:
        name, path = storage.named_path(given)
        if not path.exists():
            raise InputError(
                f"{path}: no such folder or file; --input takes a folder, a .tar or a .txt"
            )
        if name in sources:
            raise InputError(f"two inputs are called '{name}'; name one: --input other={path}")
        sources[name] = path
    return list(sources.items())


def _find_tars(source: str, path: Path) -> Found | None:
    tars = [path] if path.suffix == ".tar" else sorted(path.glob("*.tar"))
    if not tars or not path.exists():
        return None
    stats = {file: _successes(file) for file in tars}
    unfinished = set() if all(count is None for count in stats.values()) else {
        file for file, count in stats.items() if count is None
    }  # fmt: skip
    return Found(
        tuple(
            TarShard(source, file, count) for file, count in stats.items() if file not in unfinished
        ),
        {str(file): "no _stats.json, img2dataset has not finished it" for file in unfinished},
    )


def _find_images(source: str, path: Path) -> Found:
    if path.is_file():
        return _find_lines(source, path)
    names = sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.suffix.lower() in images.SUFFIXES and file.is_file()
    )
    starts = range(0, len(names), IMAGES_PER_SHARD)
    slices = (tuple(names[start : start + IMAGES_PER_SHARD]) for start in starts)
    return Found(tuple(FolderShard(source, path, names) for names in slices))


def _find_lines(source: str, path: Path) -> Found:
    if path.suffix != ".txt":
        raise InputError(
            f"{path}: expected a folder of images or of img2dataset shards, a .tar of them, or a "
            ".txt with one text a line"
        )
    shards: list[TextShard] = []
    start = first = 0
    with path.open("rb") as stream:
        while lines := list(islice(stream, LINES_PER_SHARD)):
            shards.append(TextShard(source, path, start, first, len(lines)))
            start, first = start + sum(map(len, lines)), first + len(lines)
    if not shards:
        raise InputError(f"{path}: empty; expected one text a line")
    return Found(tuple(shards))


def _successes(file: Path) -> int | None:
    stats = file.with_name(f"{file.stem}_stats.json")
    try:
        return int(json.loads(stats.read_bytes())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _listing(entries: Iterator[Entry]) -> Listing:
    try:
        return Listing(tuple(entries))
    except OSError as error:
        return Listing((), f"cannot be read ({error.strerror})")


def _split_name(name: str) -> tuple[str, str | None]:
    # At the last dot: at the first one, photo.v2.jpg would be neither read nor rejected.
    stem, dot, extension = name.rpartition(".")
    if not dot or "/" in extension:
        return name, None
    if f".{extension.lower()}" in images.SUFFIXES:
        return stem, "image"
    return stem, {"txt": "text", "json": "record"}.get(extension.lower())


def _whole(path: Path) -> Location:
    return Location(path, 0, path.stat().st_size)


def _beside(path: Path) -> Location | None:
    text = path.with_suffix(".txt")
    return _whole(text) if text.is_file() else None
