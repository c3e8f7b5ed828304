"""Where the members of a tar archive lie, by one pass over its headers.

Nothing is extracted and no name is ever used as a path. `tarfile` ends a damaged archive early
and silently; here the damage is told. What the members mean is not known here.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

BLOCK = 512
MAX_NAME_BYTES = 64 << 10
_CHUNK = 1 << 20

_REGULAR = (b"0", b"\0", b"7")
_LONG_NAME = b"L"
_PAX = b"x"
_PAX_GLOBAL = b"g"


@dataclass(frozen=True, slots=True)
class Member:
    """A regular file in an archive: its bytes stand at `offset` for `size`."""

    name: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Scan:
    """The members found, in their order, and why the scan ended early, if it did."""

    members: tuple[Member, ...]
    damage: str | None = None


class _DamageError(Exception):
    """The archive cannot be read further."""


def scan(path: Path) -> Scan:
    """List the regular members of an uncompressed tar; `OSError` when it cannot be opened."""
    members: list[Member] = []
    if path.stat().st_size == 0:
        return Scan((), "0 bytes")
    with (
        path.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        try:
            members.extend(_members(data))
        except _DamageError as error:
            return Scan(tuple(members), str(error))
    return Scan(tuple(members))


def _members(data: mmap.mmap) -> Iterator[Member]:
    position, long_name = 0, None
    while not _ended(data, position):
        header = data[position : position + BLOCK]
        size = _check(header, position)
        kind, start = header[156:157], position + BLOCK
        if start + size > len(data):
            raise _DamageError(f"cut inside the member at byte {position}")
        if kind == _LONG_NAME:
            long_name = _text(_bounded(data, start, size).rstrip(b"\0"))
        elif kind == _PAX:
            long_name = _pax_path(_bounded(data, start, size)) or long_name
        elif kind != _PAX_GLOBAL:
            if kind in _REGULAR:
                yield Member(long_name or _name(header), start, size)
            long_name = None
        position = start + (size + BLOCK - 1) // BLOCK * BLOCK


def _ended(data: mmap.mmap, position: int) -> bool:
    if position >= len(data):
        raise _DamageError(f"no end mark at byte {position}, it was cut between two members")
    if len(data) - position < BLOCK:
        raise _DamageError(f"cut inside the header at byte {position}")
    if any(data[position : position + BLOCK]):
        return False
    for start in range(position, len(data), _CHUNK):  # a page of zeros is not the end either
        if data[start : start + _CHUNK].strip(b"\0"):
            raise _DamageError(f"zeroed header at byte {position}")
    return True


def _check(header: bytes, position: int) -> int:
    try:
        stored = _number(header[148:156])
        size = _number(header[124:136])
    except ValueError:
        raise _DamageError(f"unreadable header at byte {position}") from None
    if stored != sum(header[:148]) + sum(header[156:]) + 8 * ord(" "):
        raise _DamageError(f"wrong header checksum at byte {position}")
    if size < 0:
        raise _DamageError(f"negative size in the header at byte {position}")
    return size


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU's base-256 numbers, for members of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    return int(field.strip(b" \0") or b"0", 8)


def _bounded(data: mmap.mmap, start: int, size: int) -> bytes:
    if size > MAX_NAME_BYTES:
        raise _DamageError(f"a name of {size} bytes at byte {start}")
    return data[start : start + size]


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:262] == b"ustar" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _pax_path(records: bytes) -> str | None:
    while records:
        length, _, _ = records.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(records):
            return None
        name, _, value = records[len(length) + 1 : int(length) - 1].partition(b"=")
        if name == b"path":
            return _text(value)
        records = records[int(length) :]
    return None


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")
