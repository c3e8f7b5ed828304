"""Local paths and fsspec URIs (s3, gs, http, memory, …) through one set of functions.

A path without `://` is local. Both are read here, and whole files are sent to stores; what clipray
writes on this machine goes through `storage`. What the files mean is not known.
"""

import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from fsspec.callbacks import Callback
from typing_extensions import TypeIs
from upath import UPath

from clipray.errors import ClipRayError, InputError

AnyPath = Path | UPath
ResultT = TypeVar("ResultT")

TRIES = 3  # of a transfer
CHUNK = 32 << 20  # bytes of a large file that one request brings
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


def named_place(given: str) -> tuple[str, Path | str]:
    """Take `NAME=PLACE`, or a place with the name of its last part: a URI, or an absolute path.

    Raises:
        InputError: as for `at`.
    """
    name, rest = split_name(given)
    path = at(rest)
    return name or name_of(path), path if is_local(path) else rest


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
def reachable(path: AnyPath, done: str = "read") -> Iterator[None]:
    """Tell errors inside the block, of any store's library, as one about `path`.

    Args:
        path: what is being used.
        done: what is being done to it, as "cannot be …" goes on.

    Raises:
        InputError: naming the path and the reason.
    """
    try:
        yield
    except ClipRayError:
        raise
    except Exception as error:
        raise InputError(f"{path}: cannot be {done} ({_reason(error)})") from error


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
    data = _ranged(path, offset, size)
    return data if len(data) <= size else data[offset : offset + size]


def chunks(path: UPath, size: int) -> Iterator[bytes]:
    """The first `size` bytes of a remote file, or as many as it has, in pieces.

    Raises:
        OSError: as for `read`.
    """
    for offset in range(0, size, CHUNK):
        asked = min(CHUNK, size - offset)
        try:
            data = _ranged(path, offset, asked)
        except OSError:
            if offset and path.fs.info(path.path).get("size") == offset:
                return  # some stores refuse a range behind the end
            raise
        if len(data) > asked:
            yield data[offset:size]
            return
        yield data
        if len(data) < asked:
            return


def send(source: Path, path: UPath, told: Callable[[int], object]) -> None:
    """Copy a local file to a store.

    Args:
        source: the file.
        path: what it becomes there.
        told: is told how many bytes are sent.

    Raises:
        OSError: when it cannot be sent.
    """
    hooks = {"told": lambda size, value: told(value)}
    _retried(lambda: path.fs.put_file(str(source), path.path, callback=Callback(hooks=hooks)))


def create(path: UPath, data: bytes) -> None:
    """Write a file to a store that must not be there yet.

    Two writers at once are told apart only by a store that can create exclusively (S3, Google's).

    Raises:
        FileExistsError: it is there; some stores have another OSError for it.
        OSError: when it cannot be written.
    """
    _retried(lambda: path.fs.pipe_file(path.path, data, mode="create"))


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
    listed = _retried(lambda: _fresh(folder).ls(folder.path, detail=True))
    found = ((info["name"].rpartition("/")[2], info) for info in listed if info["type"] == "file")
    return sorted((name, _size(folder / name, info)) for name, info in found)


def sizes(folder: UPath) -> dict[str, int | None]:
    """Size of every file below a remote folder, by what it is called there; none is no error.

    Raises:
        OSError: when the store does not answer.
    """
    try:
        listed = _retried(lambda: _fresh(folder).find(folder.path, detail=True))
    except FileNotFoundError:
        return {}
    cut = len(folder.path.rstrip("/")) + 1
    return {name[cut:]: info.get("size") for name, info in listed.items()}


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


def _ranged(path: UPath, offset: int, size: int) -> bytes:
    """So many bytes, or the whole file, which is what a server without ranges sends."""
    data: bytes = _retried(lambda: path.fs.cat_file(path.path, start=offset, end=offset + size))
    return data


def _fresh(folder: UPath) -> Any:
    """The file system, without what it remembers of earlier listings."""
    folder.fs.invalidate_cache()
    return folder.fs


def _size(path: UPath, info: dict[str, Any]) -> int:
    """Some stores list names without sizes."""
    size = info.get("size")
    return int(path.fs.info(path.path)["size"] or 0 if size is None else size)


def _retried(work: Callable[[], ResultT]) -> ResultT:
    for attempt in range(1, TRIES + 1):
        try:
            return work()
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            if attempt == TRIES:
                raise OSError(None, _reason(error)) from error
            time.sleep(2.0 ** (attempt - 2))
    raise AssertionError  # the last try returns or raises


def _reason(error: BaseException) -> str:
    told = " ".join(str(getattr(error, "strerror", None) or error).split())[:300]
    return told or type(error).__name__
