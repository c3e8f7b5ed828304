"""Shards of samples in the forms that img2dataset, people and text files have them.

A shard lists its samples from headers, names and line ends alone. What a sample says is not read
here, and which shards there are is found in `dataset`.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import ClassVar, Protocol, Self

from clipray import images, parquet, tar, uri
from clipray.samples import MAX_TEXT_BYTES, Entry, Listing, Location, as_unicode
from clipray.uri import AnyPath

SIGNED_BYTES = 64 << 10


class Shard(Protocol):
    """A part of a source that is read at once: a tar, a folder, or a slice of one or of a text."""

    @property
    def name(self) -> str:
        """Stable name, which begins with that of the source."""
        ...

    @property
    def path(self) -> AnyPath:
        """What is read: a file or a folder."""
        ...

    @property
    def expected(self) -> int | None:
        """How many samples it promises to hold; None where only reading it tells."""
        ...

    @property
    def members(self) -> tuple[str, ...]:
        """Names in a slice of a plain folder, which is cut the same way again; else empty."""
        ...

    def signature(self) -> str:
        """A value that changes when the shard is replaced.

        Raises:
            OSError: when it cannot be read.
        """
        ...

    def list(self) -> Listing:
        """Find the samples; reads headers, names and line ends only."""
        ...

    def at_hand(self) -> AbstractContextManager["Shard"]:
        """The same shard; what has to be fetched for reading it stays for the block."""
        ...


@dataclass(frozen=True, slots=True)
class FileShard:
    """A file of img2dataset's output with many samples in it.

    Attributes:
        source: name of its source, the first part of every key.
        path: the file.
        expected: number of samples that `_stats.json` promises, None where there is none.
        copy: a local copy of a remote file, while there is one.
    """

    source: str
    path: AnyPath
    expected: int | None = None
    copy: Path | None = None

    members: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """`<source>/<file>`."""
        return as_unicode(f"{self.source}/{self.path.name}")

    def signature(self) -> str:
        """Size and ends: the first headers and the last members tell a file of the same size."""
        if not uri.is_local(self.path):
            return uri.stamp(self.path)
        size = self.path.stat().st_size
        starts = (0, max(0, size - SIGNED_BYTES))
        ends = [uri.read(self.path, start, SIGNED_BYTES) for start in starts]
        return f"{size} bytes, {hashlib.sha256(b''.join(ends)).hexdigest()[:16]}"

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """A remote file is fetched whole: all of it is needed, and at once."""
        if uri.is_local(self.path):
            yield self
            return
        with uri.fetched(self.path) as copy:
            yield replace(self, copy=copy)

    def list(self) -> Listing:
        """Find the samples; damage where the file or the count is not whole."""
        return _listed(self._read)

    def _read(self) -> Listing:
        with uri.fetched(self.copy or self.path) as here:
            entries, damage = self._scan(here)
        return _counted(entries, self.expected, damage)

    def _scan(self, here: Path) -> tuple[Sequence[Entry], str | None]:
        """The samples in a local file, and what is wrong with it."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TarShard(FileShard):
    """A tar of img2dataset's `webdataset` output: a key a sample."""

    def _scan(self, here: Path) -> tuple[Sequence[Entry], str | None]:
        found = tar.scan(here)
        places = ((m.name, Location(self.path, m.offset, m.size, self.copy)) for m in found.members)
        return _group(self.source, places), found.damage


@dataclass(frozen=True, slots=True)
class ParquetShard(FileShard):
    """A parquet of img2dataset's `parquet` output: a row a sample, its image in a column.

    A picture that img2dataset could not fetch has a row, but is no sample.
    """

    def _scan(self, here: Path) -> tuple[Sequence[Entry], str | None]:
        entries: dict[str, list[Entry]] = {}
        for number, row in enumerate(parquet.read_rows(here)):
            if row.get("status", "success") != "success":
                continue
            key = as_unicode(f"{self.source}/{row.get('key') or f'{number:09d}'}")
            place = Location(self.path, number, None, self.copy)
            columns = row if "caption" in row else {**row, "caption": row.get("txt")}
            same = entries.setdefault(key, [])
            same.append(Entry(key, place, duplicate=bool(same), columns=columns))
        return [entry for same in entries.values() for entry in same], None


@dataclass(frozen=True, slots=True)
class FilesShard:
    """A folder of img2dataset's `files` output; its files are named as the members of a tar."""

    source: str
    path: AnyPath
    expected: int | None = None

    members: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """`<source>/<folder>`."""
        return as_unicode(f"{self.source}/{self.path.name}")

    def signature(self) -> str:
        """Names and sizes."""
        return _sign_files(uri.files(self.path))

    def list(self) -> Listing:
        """One entry a key; damage where the count is not what it should be."""
        return _listed(self._read)

    def _read(self) -> Listing:
        files = uri.files(self.path)
        places = ((name, Location(self.path / name, 0, size)) for name, size in files)
        return _counted(_group(self.source, places), self.expected, None)

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """Files are read one by one where they are."""
        yield self


@dataclass(frozen=True, slots=True)
class FolderShard:
    """A slice of a folder's sorted images; `members` are their names, relative to it."""

    source: str
    path: AnyPath
    members: tuple[str, ...]

    @property
    def name(self) -> str:
        """`<source>/<first image>`."""
        return as_unicode(f"{self.source}/{self.members[0]}")

    @property
    def expected(self) -> int:
        """One sample an image."""
        return len(self.members)

    def signature(self) -> str:
        """Names and sizes."""
        return _sign_files((name, (self.path / name).stat().st_size) for name in self.members)

    def list(self) -> Listing:
        """One entry an image; its caption stands beside it in a `.txt` of the same stem."""
        return _listed(lambda: Listing(tuple(self._entries())))

    def _entries(self) -> Iterator[Entry]:
        for name in self.members:
            path = self.path / name
            yield Entry(as_unicode(f"{self.source}/{name}"), _whole(path), _beside(path))

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """Files are read one by one where they are."""
        yield self


@dataclass(frozen=True, slots=True)
class TextShard:
    """A run of lines of a text file, from byte `start` on.

    Attributes:
        first: number of the first line, counted from 0; line n has the key `<source>/<n>`.
        expected: how many lines.
    """

    source: str
    path: AnyPath
    start: int
    first: int
    expected: int

    members: ClassVar[tuple[str, ...]] = ()

    @property
    def name(self) -> str:
        """`<source>/<number of the first line>`."""
        return as_unicode(f"{self.source}/{self.first:09d}")

    def signature(self) -> str:
        """The lines themselves."""
        digest = hashlib.sha256()
        for line in self._lines():
            digest.update(line)
        return f"{self.expected} lines, {digest.hexdigest()[:16]}"

    def list(self) -> Listing:
        """One entry a line; an empty one has no caption and is rejected later."""
        return _listed(lambda: Listing(tuple(self._entries())))

    def _entries(self) -> Iterator[Entry]:
        for number, line in enumerate(self._lines(), self.first):
            text = line[:MAX_TEXT_BYTES].decode("utf-8", errors="replace")
            yield Entry(as_unicode(f"{self.source}/{number:09d}"), columns={"caption": text})

    def _lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as stream:
            stream.seek(self.start)
            yield from islice(stream, self.expected)

    @contextmanager
    def at_hand(self) -> Iterator[Self]:
        """Its lines are read with the list."""
        yield self


def _group(source: str, members: Iterable[tuple[str, Location]]) -> list[Entry]:
    """Samples of members named `<key>.<extension>`, in the order of each key's first member."""
    groups: dict[tuple[str, int], dict[str, Location]] = {}
    repeats: dict[str, int] = {}
    for name, place in members:
        key, kind = _split_name(name)
        if kind is None:
            continue
        group = groups.setdefault((key, repeats.get(key, 0)), {})
        if kind in group:  # the key comes again: another sample, not another member
            repeats[key] = repeats.get(key, 0) + 1
            group = groups.setdefault((key, repeats[key]), {})
        group[kind] = place
    return [
        Entry(
            as_unicode(f"{source}/{key}"),
            group.get("image"),
            group.get("text"),
            group.get("record"),
            duplicate=repeat > 0,
        )
        for (key, repeat), group in groups.items()
    ]


def _split_name(name: str) -> tuple[str, str | None]:
    # At the last dot: at the first one, photo.v2.jpg would be neither read nor rejected.
    stem, dot, extension = name.rpartition(".")
    if not dot or "/" in extension:
        return name, None
    if f".{extension.lower()}" in images.SUFFIXES:
        return stem, "image"
    return stem, {"txt": "text", "json": "record"}.get(extension.lower())


def _counted(entries: Sequence[Entry], expected: int | None, damage: str | None) -> Listing:
    if damage is None and expected not in (None, len(entries)):
        damage = f"holds {len(entries)} samples, its _stats.json says {expected}"
    return Listing(tuple(entries), damage)


def _listed(read: Callable[[], Listing]) -> Listing:
    try:
        return read()
    except OSError as error:
        return Listing((), f"cannot be read ({error.strerror or error})")


def _sign_files(files: Iterable[tuple[str, int]]) -> str:
    listed = [f"{name} {size}" for name, size in files]
    digest = hashlib.sha256("\n".join(listed).encode("utf-8", errors="surrogateescape"))
    return f"{len(listed)} files, {digest.hexdigest()[:16]}"


def _whole(path: AnyPath) -> Location:
    return Location(path, 0, path.stat().st_size)


def _beside(path: AnyPath) -> Location | None:
    text = path.with_suffix(".txt")
    return _whole(text) if text.is_file() else None
