"""Reading local paths and fsspec URIs (s3, gs, http, memory, …) through one set of functions.

A path without `://` is local. Only reading is done here; what clipray writes goes through
`storage`. What the files mean is not known.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from typing_extensions import TypeIs
from upath import UPath

from clipray.errors import ClipRayError, InputError

AnyPath = Path | UPath
ResultT = TypeVar("ResultT")

TRIES = 3  # of a transfer
EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}  # packages that a protocol needs

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)

# What stores call the value that changes with the content.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "Last-Modified", "LastModified", "mtime",
           "updated", "created")  # fmt: skip


def at(given: str) -> AnyPath:
    """The path behind what a user wrote; local ones become absolute.

    Raises:
        InputError: a protocol that fsspec does not know, or whose package is not installed.
    """
    protocol, sign, rest = given.partition("://")
    if not sign:
        return Path(given).resolve()
    if protocol == "file":
        return Path("/" + rest.lstrip("/"))
    try:
        path = UPath(given.rstrip("/"))
        path.fs  # noqa: B018  opens the file system, which is where a missing package shows
    except (ImportError, ValueError) as error:
        extra = EXTRAS.get(protocol)
        hint = f"; install it with: pip install 'clipray[{extra}]'" if extra else ""
        raise InputError(f"{given}: cannot be opened ({error}){hint}") from None
    return path


def split_name(given: str) -> tuple[str | None, str]:
    """Take `NAME=PATH` apart; what exists under the whole of it has no name."""
    named = None if "://" not in given and Path(given).exists() else _NAMED.fullmatch(given)
    return (named[1], named[2]) if named else (None, given)


def named_path(given: str) -> tuple[str, Path]:
    """Take `NAME=PATH`, or a local path whose name is that of its last part, made absolute."""
    name, rest = split_name(given)
    path = Path(rest).resolve()
    return name or path.name, path


def is_local(path: AnyPath) -> TypeIs[Path]:
    """Whether the bytes lie on this machine, where they can be mapped."""
    return isinstance(path, Path)


def name_of(path: AnyPath) -> str:
    """Last part of a path; of the root of a store, its host or bucket."""
    return path.name or str(path).rstrip("/").rpartition("/")[2]


def below(path: AnyPath, folder: AnyPath) -> str:
    """What `path` is called inside `folder`; empty for the folder itself."""
    return str(path).removeprefix(str(folder)).strip("/")


@contextmanager
def reachable(path: AnyPath) -> Iterator[None]:
    """Tell errors inside the block, of any store's library, as one about `path`.

    Raises:
        InputError: naming the path and the reason.
    """
    try:
        yield
    except ClipRayError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be read ({_reason(error)})") from error


def read(path: AnyPath, offset: int, size: int) -> bytes:
    """At most `size` bytes from `offset` on.

    Raises:
        OSError: when they cannot be read, whatever the store's library raises.
    """
    if is_local(path):
        with path.open("rb") as stream:
            stream.seek(offset)
            return bytes(stream.read(size))
    if size <= 0:
        return b""
    data: bytes = _retried(lambda: path.fs.cat_file(path.path, start=offset, end=offset + size))
    # A server that does not know ranges sends the whole file.
    return data if len(data) <= size else data[offset : offset + size]


@contextmanager
def fetched(path: AnyPath) -> Iterator[Path]:
    """A local copy of a remote file for the time of the block; a local file as it is.

    Raises:
        OSError: when it cannot be fetched whole.
    """
    if is_local(path):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="clipray-") as folder:
        copy = Path(folder) / "fetched"
        _retried(lambda: _fetch(path, copy))
        yield copy


def files(folder: AnyPath) -> list[tuple[str, int]]:
    """Name and size of the files right inside a folder, by name.

    Raises:
        OSError: when the folder cannot be read.
    """
    if is_local(folder):
        with os.scandir(folder) as entries:
            return sorted((e.name, e.stat().st_size) for e in entries if e.is_file())
    listed = _retried(lambda: folder.fs.ls(folder.path, detail=True))
    found = ((info["name"].rpartition("/")[2], info) for info in listed if info["type"] == "file")
    return sorted((name, _size(folder / name, info)) for name, info in found)


def stamp(path: UPath) -> str:
    """A value that changes when a remote file is replaced, from its headers alone.

    Raises:
        OSError: when the store does not answer.
    """
    info = _retried(lambda: path.fs.info(path.path))
    found = next((str(info[name]) for name in _STAMPS if info.get(name)), "no stamp")
    return f"{info.get('size')} bytes, {found}"


def _fetch(path: UPath, copy: Path) -> None:
    expected = path.fs.info(path.path).get("size")
    path.fs.get_file(path.path, str(copy))
    found = copy.stat().st_size
    if expected not in (None, found):
        raise OSError(f"{found} of {expected} bytes came")


def _size(path: UPath, info: dict[str, Any]) -> int:
    """Some stores list names without sizes."""
    size = info.get("size")
    return int(path.fs.info(path.path)["size"] or 0 if size is None else size)


def _retried(work: Callable[[], ResultT]) -> ResultT:
    for attempt in range(1, TRIES + 1):
        try:
            return work()
        except FileNotFoundError:
            raise
        except Exception as error:
            if attempt == TRIES:
                raise OSError(None, _reason(error)) from error
            time.sleep(2.0 ** (attempt - 2))
    raise AssertionError  # the last try returns or raises


def _reason(error: BaseException) -> str:
    told = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
    return told or type(error).__name__
