"""Calls that change files and folders, followed from within the process that makes them.

Seen are `os` and `open`, as Python code and `Path` use them, by any thread. What C code does by
itself is not.
"""

import builtins
import io
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

TWO_PATHS = ("replace", "rename", "link")
CHANGING = (*TWO_PATHS, "unlink", "remove", "mkdir", "rmdir", "truncate", "ftruncate", "write")
CREATING = os.O_CREAT | os.O_TRUNC
SYNCING = ("fsync", "fdatasync")

ONE_CALL = threading.RLock()  # at a time, so that what changed is what it did


@contextmanager
def followed(root: Path, before: Callable[[str], None]):
    """Tell `before` of each call that changes something below `root`, ahead of it."""
    open_file = _follow_open(root, before)
    with ExitStack() as stack:
        for name in CHANGING:
            stack.enter_context(patch.object(os, name, _follow(name, root, before)))
        stack.enter_context(patch.object(os, "open", _follow_creation(root, before)))
        for module in (builtins, io):
            stack.enter_context(patch.object(module, "open", open_file))
        yield


def _follow(name, root, before):
    call = getattr(os, name)

    def called(*paths, **options):
        place = place_of(paths[name in TWO_PATHS], options.get("dst_dir_fd", options.get("dir_fd")))
        if not place.is_relative_to(root):
            return call(*paths, **options)
        with ONE_CALL:
            before(f"{name} {place.relative_to(root)}")
            return call(*paths, **options)

    return called


def _follow_creation(root, before):
    call = os.open

    def called(path, flags, mode=0o777, *, dir_fd=None):
        place = place_of(path, dir_fd)
        if not flags & CREATING or not place.is_relative_to(root):
            return call(path, flags, mode, dir_fd=dir_fd)
        with ONE_CALL:
            before(f"open {place.relative_to(root)}")
            return call(path, flags, mode, dir_fd=dir_fd)

    return called


def _follow_open(root, before):
    call = io.open

    def called(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, **options):
        if not set(mode) & set("wax+") or not place_of(file).is_relative_to(root):
            return call(file, mode, buffering, encoding, errors, newline, **options)
        told = str(place_of(file).relative_to(root))
        with ONE_CALL:
            before(f"open {told}")
            raw = _Raw(file, mode, lambda: before(f"write {told}"), **options)
        if buffering == 0:
            return raw
        binary = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        return binary if "b" in mode else io.TextIOWrapper(binary, encoding, errors, newline)

    return called


class _Raw(io.FileIO):
    """A file that tells of every write(2), and makes two of each."""

    def __init__(self, file, mode, before, **options):
        super().__init__(file, mode.replace("b", "").replace("t", ""), **options)
        self._before = before

    def write(self, data):
        view = memoryview(data).cast("B")
        half = len(view) // 2
        return sum(self._write(piece) for piece in (view[:half], view[half:]) if piece)

    def _write(self, piece):
        with ONE_CALL:
            self._before()
            return super().write(piece)


@contextmanager
def syncs(call):
    """Make `call` instead of every fsync, so nothing waits for a real disk."""
    with ExitStack() as stack:
        if os.fsync is not no_fsync:  # `without_fsync` stays so, whoever comes first
            for name in SYNCING:
                stack.enter_context(patch.object(os, name, call))
        yield


def no_fsync(descriptor):
    """Refuse what is no open file, as the real one does."""
    os.fstat(descriptor)


def place_of(path, folder_descriptor=None):
    """Absolute path of what a call names by path or by descriptor."""
    if isinstance(path, int):
        return Path(f"/proc/self/fd/{path}").readlink()
    base = Path.cwd() if folder_descriptor is None else place_of(folder_descriptor)
    return base / os.fsdecode(path)
