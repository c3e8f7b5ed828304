"""The file-system seam: every durable write of clipray goes through these few functions.

A file becomes visible only whole: it is written under a temporary name, flushed to the disk and
then published. This module does not know what the files mean.
"""

import fcntl
import hashlib
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from typing_extensions import Buffer

log = logging.getLogger(__name__)

STAGING_SUFFIX = ".tmp"


def write_file(path: Path, data: bytes) -> None:
    """Write `data` durably and replace what stood at `path`."""
    staged = staging_path(path)
    try:
        with _naming(path):
            _write(staged, data)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)


def create_file(path: Path, data: bytes) -> bool:
    """Write `data` durably unless `path` exists; says whether it was this call that created it."""
    staged = staging_path(path)
    try:
        with _naming(path):
            _write(staged, data)
            os.link(staged, path)
    except FileExistsError:
        return False
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


class Sink:
    """A binary file that hashes what is written to it.

    Hashing while writing makes the checksum one of the intended bytes, not of what happened to
    reach the disk.
    """

    closed = False

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._path = Path(stream.name)
        self._digest = hashlib.sha256()
        self.size = 0

    def write(self, data: Buffer) -> int:
        """Append bytes; returns how many."""
        view = memoryview(data).cast("B")
        with _naming(self._path):
            self._stream.write(view)
        self._digest.update(view)
        self.size += len(view)
        return len(view)

    def flush(self) -> None:
        """Left to `stream_file`, which flushes once."""

    def close(self) -> None:
        """Left to `stream_file`; writers of other packages close what they were given."""

    @property
    def sha256(self) -> str:
        """Checksum of all that was written, in hex."""
        return self._digest.hexdigest()


def stream_file(path: Path, fill: Callable[[Sink], object]) -> tuple[int, str]:
    """Write durably what `fill` writes to its sink; returns (bytes, sha256 in hex)."""
    make_folder(path.parent)
    staged = staging_path(path)
    try:
        with _naming(path):
            with staged.open("wb") as stream:
                sink = Sink(stream)
                fill(sink)
                _flush(stream.fileno(), stream.flush)
            staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    sync_folder(path.parent)
    return sink.size, sink.sha256


def publish(staged: Path, path: Path) -> None:
    """Let what was written under a hidden name be seen as `path`, durably."""
    _sync(staged)
    staged.replace(path)
    sync_folder(path.parent)


@contextmanager
def hashed(path: Path) -> Iterator[Sink]:
    """Yield a sink into a file of a staged folder, which flushes it with all the others."""
    with _naming(path), path.open("wb") as stream:
        yield Sink(stream)


@contextmanager
def staged_folder(path: Path) -> Iterator[Path]:
    """Yield a folder beside `path` that becomes `path` when the block ends well.

    Raises:
        FileExistsError: when `path` exists and is not an empty folder.
    """
    if occupied(path):
        raise FileExistsError(f"{path} exists")
    _clear(path)
    make_folder(path.parent)
    staged = staging_path(path)
    try:
        with _naming(path):
            staged.mkdir()
        yield staged
        sync_tree(staged)
        staged.replace(path)  # an empty folder at `path` is replaced, a full one refuses
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    sync_folder(path.parent)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock file `path`, which ends with the process whatever becomes of it.

    Args:
        path: the file, made where it is missing.
        shared: let others hold it as well that ask for it in the same way.

    Raises:
        BlockingIOError: when another process holds it.
    """
    make_folder(path.parent)
    kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
    with path.open("ab") as stream:
        try:
            fcntl.flock(stream, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks; what it holds is still written whole
            log.debug("%s: cannot be locked there", path)
        yield


def cache_root() -> Path:
    """Where copies of published indices are kept: `$CLIPRAY_CACHE`, or in the home folder."""
    return Path(os.environ.get("CLIPRAY_CACHE") or "~/.cache/clipray").expanduser().resolve()


def remove_folder(path: Path) -> None:
    """Remove a folder with all that is in it, if it is there."""
    shutil.rmtree(path, ignore_errors=True)


def occupied(path: Path) -> bool:
    """Whether `path` is a file, or a folder with something in it."""
    if path.is_dir():
        return any(not is_staging(entry) for entry in path.iterdir())
    return path.exists()


def staging_path(path: Path) -> Path:
    """A hidden name beside `path` that no reader takes for a finished file."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{STAGING_SUFFIX}")


def is_staging(path: Path) -> bool:
    """Whether `path` is the rest of a write that was cut off."""
    return path.name.startswith(".") and path.name.endswith(STAGING_SUFFIX)


def sha256_file(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def make_folder(path: Path) -> None:
    """Create `path` and the folders above it, durably, where they are missing."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below `folder`, and itself, to the disk."""
    for path in folder.rglob("*"):
        _sync(path)
    _sync(folder)


def sync_folder(folder: Path) -> None:
    """Flush the names in `folder`, so that a publish outlives a power cut."""
    _sync(folder)


def _clear(path: Path) -> None:
    """Remove rests of writes that were cut off; they would keep a folder from being replaced."""
    for rest in list(path.iterdir()) if path.is_dir() else []:
        if is_staging(rest):
            shutil.rmtree(rest) if rest.is_dir() else rest.unlink()


def _write(path: Path, data: bytes) -> None:
    with path.open("wb") as stream:
        stream.write(data)
        _flush(stream.fileno(), stream.flush)


def _flush(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with _naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Have an error of the disk name `path`: a write names no file, others name a staged one."""
    try:
        yield
    except OSError as error:
        named = error.filename
        if error.errno and (named is None or (isinstance(named, str) and is_staging(Path(named)))):
            error.filename = str(path)
        raise
