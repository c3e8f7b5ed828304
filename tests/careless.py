"""Two ways to write that no crash test may find good: its negative controls."""

import os
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from clipray import storage
from tests.calls import no_fsync, syncs


@contextmanager
def without_fsync():
    """An operation that forgets to flush, or a disk that lies: a power cut must show it."""
    with syncs(no_fsync):
        yield


@contextmanager
def in_place():
    """Storage without temporary names: a power cut and a kill must show it."""
    with ExitStack() as stack:
        for name, call in IN_PLACE.items():
            stack.enter_context(patch.object(storage, name, call))
        yield


def _write_in_place(path, data):
    _stream_in_place(path, lambda sink: sink.write(data))


def _create_in_place(path, data):
    if path.exists():
        return False
    _write_in_place(path, data)
    return True


def _stream_in_place(path, fill):
    storage.make_folder(path.parent)
    with path.open("wb") as stream:
        sink = storage.Sink(stream)
        fill(sink)
        stream.flush()
        os.fsync(stream.fileno())
    storage.sync_folder(path.parent)
    return sink.size, sink.sha256


@contextmanager
def _folder_in_place(path):
    storage.make_folder(path)
    yield path
    storage.sync_tree(path)


IN_PLACE = {
    "write_file": _write_in_place,
    "create_file": _create_in_place,
    "stream_file": _stream_in_place,
    "staged_folder": _folder_in_place,
}
