"""A file or folder is there whole, or not at all."""

import hashlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from clipray import storage
from clipray.storage import (
    create_file,
    is_staging,
    make_folder,
    occupied,
    sha256_file,
    staged_folder,
    staging_path,
    stream_file,
    write_file,
)
from tests.crashes import lost_states


@pytest.fixture
def order(monkeypatch):
    """What reaches the disk, in its order: flushes and new names."""
    seen = []

    def spy(module_name, call):
        def called(first, *others, **named):
            seen.append(module_name)
            return call(first, *others, **named)

        return called

    for name in ("fsync", "link", "replace", "rename"):
        monkeypatch.setattr(os, name, spy(name, getattr(os, name)))
    return seen


def test_write_replaces_and_leaves_nothing_else(tmp_path):
    path = tmp_path / "file"
    for data in (b"one", b"two", b""):
        write_file(path, data)
        assert path.read_bytes() == data
    assert list(tmp_path.iterdir()) == [path]


def test_bytes_are_flushed_before_the_name_and_the_name_after_it(tmp_path, order):
    write_file(tmp_path / "a", b"x")
    assert order in (["fsync", "replace", "fsync"], ["fsync", "rename", "fsync"])
    order.clear()
    assert create_file(tmp_path / "b", b"x")
    assert order == ["fsync", "link", "fsync"]
    order.clear()
    stream_file(tmp_path / "c", lambda sink: sink.write(b"x"))
    assert order in (["fsync", "replace", "fsync"], ["fsync", "rename", "fsync"])


def test_create_happens_once(tmp_path):
    path = tmp_path / "one"
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: create_file(path, b"%d" % n), range(40)))
    assert won.count(True) == 1
    assert path.read_bytes() == b"%d" % won.index(True)
    assert list(tmp_path.iterdir()) == [path]


def test_stream_gives_size_and_checksum_of_what_is_on_disk(tmp_path):
    path = tmp_path / "new" / "file"
    chunks = [b"abc", bytearray(b"\x00" * 1000), memoryview(b"xyz")]

    def fill(sink):
        assert [sink.write(chunk) for chunk in chunks] == [3, 1000, 3]
        sink.close()

    size, checksum = stream_file(path, fill)
    assert size == 1006
    assert checksum == hashlib.sha256(b"".join(chunks)).hexdigest() == sha256_file(path)


def test_a_stream_that_fails_changes_nothing(tmp_path):
    path = tmp_path / "file"
    write_file(path, b"before")

    def fill(sink):
        sink.write(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stream_file(path, fill)
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "folder"
    with staged_folder(path) as staged:
        (staged / "sub").mkdir()
        (staged / "sub" / "file").write_bytes(b"x")
        assert not path.exists()
    assert (path / "sub" / "file").read_bytes() == b"x"
    assert list(path.parent.iterdir()) == [path]


def _publish_file(path):
    stream_file(path, lambda sink: sink.write(b"x"))


def _publish_folder(path):
    with staged_folder(path):
        pass


@pytest.mark.parametrize("publish", [_publish_file, _publish_folder, make_folder])
def test_what_is_published_in_new_folders_outlives_a_power_cut(tmp_path, publish):
    place = "new/deep/name"
    (tmp_path / "empty").mkdir()
    states = lost_states(lambda root: publish(root / place), tmp_path / "empty", tmp_path / "lost")
    found = [(state.acknowledged, (state.folder / place).exists()) for state in states]
    assert (False, False) in found
    assert (True, True) in found
    assert (True, False) not in found


def test_a_block_that_fails_leaves_no_folder(tmp_path):
    def write():
        with staged_folder(tmp_path / "folder") as staged:
            (staged / "file").write_bytes(b"x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_what_exists_is_not_replaced(tmp_path, kind):
    path = tmp_path / "taken"
    mine = path if kind == "file" else path / "mine"
    mine.parent.mkdir(exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError), staged_folder(path):
        pytest.fail("the block must not run")
    assert mine.read_bytes() == b"mine"


def test_a_folder_that_fills_up_meanwhile_is_not_replaced(tmp_path):
    path = tmp_path / "taken"

    def write():
        with staged_folder(path) as staged:
            (staged / "theirs").touch()
            path.mkdir()
            (path / "mine").touch()

    with pytest.raises(OSError, match="taken"):
        write()
    assert [entry.name for entry in path.iterdir()] == ["mine"]


def test_an_empty_folder_and_rests_of_cut_off_writes_are_replaced(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    staging_path(path / "file").write_bytes(b"half")
    staging_path(path / "sub").mkdir()
    assert not occupied(path)
    with staged_folder(path) as staged:
        (staged / "whole").touch()
    assert [entry.name for entry in path.iterdir()] == ["whole"]


def test_staging_names_are_hidden_and_known(tmp_path):
    path = tmp_path / "a.json"
    assert is_staging(staging_path(path))
    assert staging_path(path) != staging_path(path)
    assert staging_path(path).parent == tmp_path
    assert not is_staging(path)
    assert not list(tmp_path.glob("*.json"))


def test_a_lock_ends_with_its_process(tmp_path):
    path = tmp_path / "inner/.lock.tmp"
    hold = "import sys, time; from pathlib import Path; from clipray.storage import locked\n"
    hold += "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", hold, path], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(BlockingIOError), storage.locked(path):
            pass
        process.kill()
    with storage.locked(path):
        pass
    assert not storage.occupied(path.parent)
