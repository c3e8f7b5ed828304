"""Folders of img2dataset shards or plain images, as samples.

A source is cut into shards, a shard lists its samples from headers and file names alone, and a
sample is read by offset. Pixels are not decoded here, and nothing is extracted to the disk.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipray import images, storage, tar
from clipray.errors import InputError

IMAGES_PER_SHARD = 1_000  # of a plain folder
MAX_TEXT_BYTES = 4 << 20
SIGNED_BYTES = 64 << 10


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of one member lie."""

    path: Path
    offset: int
    size: int

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes."""
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(min(self.size, limit))


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample by name: its key `<source>/<key>` and where its members lie."""

    key: str
    image: Location | None = None
    text: Location | None = None
    record: Location | None = None
    duplicate: bool = False

    def read_image(self) -> bytes:
        """The image file; longer ones are cut just past the limit, which `decode` then refuses."""
        return self.image.read(images.MAX_BYTES + 1) if self.image else b""

    def read_columns(self) -> dict[str, Any]:
        """Metadata of the sample, `caption` (stripped, may be None) among it."""
        columns = _parse_record(self.record.read(MAX_TEXT_BYTES)) if self.record else {}
        caption = columns.get("caption")
        if self.text:
            caption = self.text.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")
        columns["caption"] = str(caption).strip() or None if caption is not None else None
        return columns


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of a shard, and why it is not whole, if it is not."""

    entries: tuple[Entry, ...]
    damage: str | None = None


@dataclass(frozen=True, slots=True)
class Shard:
    """A tar, or a slice of a folder's sorted image names.

    Attributes:
        source: name of its source, the first part of every key.
        path: the tar, or the folder.
        names: paths of images relative to the folder; empty for a tar.
        expected: number of samples that `_stats.json` promises, None where there is none.
    """

    source: str
    path: Path
    names: tuple[str, ...] = ()
    expected: int | None = None

    @property
    def name(self) -> str:
        """Stable name of the shard: `<source>/<tar>` or `<source>/<first image>`."""
        return as_unicode(f"{self.source}/{self.names[0] if self.names else self.path.name}")

    def signature(self) -> str:
        """A value that changes when the shard is replaced."""
        if not self.names:
            return _tar_signature(self.path)
        listed = "\n".join(f"{name} {(self.path / name).stat().st_size}" for name in self.names)
        return f"{len(self.names)} files, {hashlib.sha256(os.fsencode(listed)).hexdigest()[:16]}"

    def list(self) -> Listing:
        """Find the samples; reads headers and names only."""
        try:
            if self.names:
                return Listing(tuple(self._folder_entries()))
            scanned = tar.scan(self.path)
        except OSError as error:
            return Listing((), f"cannot be read ({error.strerror})")
        entries = tuple(self._tar_entries(scanned.members))
        return Listing(entries, scanned.damage or self._miscount(entries))

    def _miscount(self, entries: Sequence[Entry]) -> str | None:
        if self.expected in (None, len(entries)):
            return None
        return f"holds {len(entries)} samples, its _stats.json says {self.expected}"

    def _folder_entries(self) -> Iterator[Entry]:
        for name in self.names:
            path = self.path / name
            yield Entry(as_unicode(f"{self.source}/{name}"), _whole(path), _beside(path), None)

    def _tar_entries(self, members: Iterable[tar.Member]) -> Iterator[Entry]:
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
class Found:
    """The shards of all inputs in their order, and what was passed over with the reason."""

    shards: tuple[Shard, ...]
    skipped: dict[str, str] = field(default_factory=dict)


def find_shards(inputs: Sequence[str]) -> Found:
    """Cut the inputs into shards.

    Args:
        inputs: folders of img2dataset tars, single tars, or folders of images; each may be
            given as `NAME=FOLDER`, the name is the folder's own by default.

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


def as_unicode(name: str) -> str:
    """A file name that any encoder takes; bytes of it that are no text become escapes."""
    return name.encode("utf-8", errors="backslashreplace").decode()


def _named_sources(inputs: Sequence[str]) -> list[tuple[str, Path]]:
    sources: dict[str, Path] = {}
    for given in inputs:
        name, path = storage.named_path(given)
        if not path.exists():
            raise InputError(f"{path}: no such folder or file; --input takes a folder or a .tar")
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
            Shard(source, file, expected=count)
            for file, count in stats.items()
            if file not in unfinished
        ),
        {str(file): "no _stats.json, img2dataset has not finished it" for file in unfinished},
    )


def _find_images(source: str, path: Path) -> Found:
    if path.is_file():
        raise InputError(f"{path}: a file; expected a folder of images or of img2dataset shards")
    names = sorted(
        str(file.relative_to(path))
        for file in path.rglob("*")
        if file.suffix.lower() in images.SUFFIXES and file.is_file()
    )
    starts = range(0, len(names), IMAGES_PER_SHARD)
    return Found(tuple(_slice(source, path, names[i : i + IMAGES_PER_SHARD]) for i in starts))


def _tar_signature(path: Path) -> str:
    # The ends tell a replaced tar of the same size: the first headers, and the last members.
    size = path.stat().st_size
    ends = (Location(path, start, SIGNED_BYTES) for start in (0, max(0, size - SIGNED_BYTES)))
    signed = b"".join(end.read(SIGNED_BYTES) for end in ends)
    return f"{size} bytes, {hashlib.sha256(signed).hexdigest()[:16]}"


def _slice(source: str, path: Path, names: list[str]) -> Shard:
    return Shard(source, path, names=tuple(names))


def _successes(file: Path) -> int | None:
    stats = file.with_name(f"{file.stem}_stats.json")
    try:
        return int(json.loads(stats.read_bytes())["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


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


def _parse_record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    if not isinstance(record, dict):
        return {}
    return {as_unicode(name): _flat(value) for name, value in record.items() if name != "key"}


def _flat(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str):  # JSON may hold half of an emoji, which no file can
        return value.encode("utf-8", errors="replace").decode()
    return value
