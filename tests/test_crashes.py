"""A sound operation holds in every state that a crash may leave; a careless one is found out."""

import os
import shutil
import uuid
from contextlib import contextmanager

import pytest

from clipray import storage
from clipray.errors import DamagedError, OutputError
from clipray.index.manifest import IndexFolder, IndexManifest, SegmentRecord, ShardRecord
from clipray.manifest import FileRecord, ModelIdentity, ModelSource
from tests.careless import in_place, without_fsync
from tests.crashes import RETURNED, killed_states, lost_states

MODEL = ModelIdentity(name="tiny", dim=2, weights="w", preprocess="p", tokenizer="t")
NOTE = "note.yaml"


def grow(root):
    """The next version, which has a segment more."""
    folder = _index(root)
    versions = folder.versions()
    shards = folder.read().shards if versions else ()
    _commit(folder, (*shards, ShardRecord(segments=(_segment(folder),))))
    storage.write_file(folder.root / NOTE, b"version %d" % folder.versions()[-1])


def merge(root):
    """The next version, which has one new segment; the old ones go."""
    folder = _index(root)
    old = _segments(folder)
    _commit(folder, (ShardRecord(segments=(_segment(folder),)),))
    for segment in old:
        shutil.rmtree(folder.segment(segment.id))


def merge_too_early(root):
    folder = _index(root)
    for segment in _segments(folder):
        shutil.rmtree(folder.segment(segment.id))
    _commit(folder, (ShardRecord(segments=(_segment(folder),)),))


def grow_without_fsync(root):
    with without_fsync():
        grow(root)


def grow_in_place(root):
    with in_place():
        grow(root)


def grow_without_names(root):
    with _names_not_synced():
        grow(root)


def fail(root):
    raise OSError("not today")


def _index(root):
    return IndexFolder(root / "new" / "index")


def _segments(folder):
    return [segment for shard in folder.read().shards for segment in shard.segments]


def _segment(folder):
    name = uuid.uuid4().hex
    with storage.staged_folder(folder.segment(name)) as staged:
        files = {
            file: FileRecord.of(storage.stream_file(staged / file, _fill))
            for file in ("vectors", "rows")
        }
    return SegmentRecord(id=name, rows=1, files=files)


def _fill(sink):
    for _ in range(3):
        sink.write(os.urandom(5000))


def _commit(folder, shards):
    version = max(folder.versions(), default=0) + 1
    source = ModelSource(name="tiny")
    folder.commit(
        IndexManifest(
            version=version,
            model=MODEL,
            source=source,
            modality="image",
            method="Flat",
            shards=shards,
        )
    )


@contextmanager
def _names_not_synced():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(storage, "sync_folder", lambda folder: None)
        yield


def read(root):
    """The version that stands, all of whose files are whole; 0 where there is none."""
    folder = _index(root)
    if not folder.versions():
        return 0
    for segment in _segments(folder):
        for name, record in segment.files.items():
            record.verify(folder.segment(segment.id) / name)
    return folder.versions()[-1]


def holds(state, old):
    """Old or new, what was acknowledged is kept, and the next write succeeds."""
    try:
        found = read(state.folder)
        with without_fsync():
            grow(state.folder)
        return found in {old + state.acknowledged, old + 1} and read(state.folder) == found + 1
    except (DamagedError, OutputError):
        return False


def bad(states, old):
    """(states, those that do not hold); the last is that of the operation that has returned."""
    told = [(state, holds(state, old)) for state in states]
    assert [state.acknowledged for state, _ in told].index(True) > 0
    assert all(state.acknowledged == (state.step == RETURNED) for state, _ in told)
    return len(told), [f"{state.step}, lost {state.loss}" for state, good in told if not good]


@pytest.fixture(params=[0, 2], ids=["new", "grown"])
def start(request, tmp_path):
    """A folder with so many versions, and how many."""
    folder = tmp_path / "start"
    folder.mkdir()
    for _ in range(request.param):
        grow(folder)
    return folder, request.param


@pytest.fixture
def grown(tmp_path):
    folder = tmp_path / "grown"
    folder.mkdir()
    grow(folder)
    grow(folder)
    return folder


@pytest.fixture
def scratch(tmp_path):
    return tmp_path / "scratch"


def test_a_power_cut_leaves_old_or_new(start, scratch):
    folder, old = start
    count, found = bad(lost_states(grow, folder, scratch), old)
    assert not found
    assert count > 20
    assert read(folder) == old  # it worked on a copy
    assert not list(scratch.iterdir())


def test_a_kill_leaves_old_or_new(start, scratch):
    folder, old = start
    count, found = bad(killed_states(f"{__name__}:grow", folder, scratch), old)
    assert not found
    assert count > 20
    assert not list(scratch.iterdir())


def test_what_is_removed_after_the_commit_is_not_missed(grown, scratch):
    assert bad(lost_states(merge, grown, scratch), 2)[1] == []
    assert bad(killed_states(f"{__name__}:merge", grown, scratch), 2)[1] == []


def test_what_is_removed_before_the_commit_is_missed(grown, scratch):
    assert bad(lost_states(merge_too_early, grown, scratch), 2)[1]
    assert bad(killed_states(f"{__name__}:merge_too_early", grown, scratch), 2)[1]


@pytest.mark.parametrize("careless", [grow_without_fsync, grow_without_names, grow_in_place])
def test_a_power_cut_finds_a_careless_operation(start, scratch, careless):
    folder, old = start
    _, found = bad(lost_states(careless, folder, scratch), old)
    assert found


def test_a_kill_finds_writing_in_place(start, scratch):
    folder, old = start
    _, found = bad(killed_states(f"{__name__}:grow_in_place", folder, scratch), old)
    assert any(step.startswith("write") for step in found)


def test_an_operation_that_fails_by_itself_is_no_crash(grown, scratch, capfd):
    with pytest.raises(OSError, match="not today"):
        list(lost_states(fail, grown, scratch))
    with pytest.raises(RuntimeError, match="fail"):
        list(killed_states(f"{__name__}:fail", grown, scratch))
    assert "not today" in capfd.readouterr().err


def seen(op, folder, scratch, path="file"):
    """What `path` may hold after a power cut, by whether the operation had returned."""
    found = {False: set(), True: set()}
    for state in lost_states(op, folder, scratch, range(40)):
        place = state.folder / path
        found[state.acknowledged].add(place.read_bytes() if place.exists() else None)
    return found


@pytest.fixture
def bare(tmp_path):
    (tmp_path / "bare").mkdir()
    return tmp_path / "bare"


def test_a_file_that_is_not_flushed_may_be_absent_empty_torn_zero_or_whole(bare, scratch):
    found = seen(lambda folder: (folder / "file").write_bytes(b"abc"), bare, scratch)[True]
    assert found >= {None, b"", b"abc", bytes(3)}
    assert found <= {None, b"", b"a", b"ab", b"abc", bytes(3), b"a\0\0", b"ab\0"}


def test_a_file_that_is_flushed_is_whole_or_its_name_is_missing(bare, scratch):
    def op(folder):
        with (folder / "file").open("wb") as stream:
            stream.write(b"abc")
            stream.flush()
            os.fsync(stream.fileno())

    assert seen(op, bare, scratch)[True] == {None, b"abc"}


def test_what_was_flushed_before_an_append_stays(bare, scratch):
    def op(folder):
        with (folder / "file").open("ab") as stream:
            stream.write(b"de")

    (bare / "file").write_bytes(b"abc")
    found = seen(op, bare, scratch)[True]
    assert {b"abc", b"abcde"} < found
    assert all(content.startswith(b"abc") for content in found)


def test_a_name_points_at_the_old_or_the_new_file_until_its_folder_is_flushed(bare, scratch):
    def op(folder):
        (folder / "next").replace(folder / "file")
        storage.sync_folder(folder)

    (bare / "file").write_bytes(b"old")
    (bare / "next").write_bytes(b"new")
    assert seen(op, bare, scratch) == {False: {b"old", b"new"}, True: {b"new"}}


def test_a_name_that_is_removed_may_come_back_until_its_folder_is_flushed(bare, scratch):
    def op(folder):
        shutil.rmtree(folder / "sub")
        storage.sync_folder(folder)

    (bare / "sub").mkdir()
    (bare / "sub" / "file").write_bytes(b"old")
    assert seen(op, bare, scratch, "sub/file") == {False: {b"old", None}, True: {None}}


def test_a_new_folder_is_a_name_in_the_one_above(bare, scratch):
    def op(folder):
        (folder / "sub").mkdir()
        storage.write_file(folder / "sub" / "file", b"new")

    assert seen(op, bare, scratch, "sub/file")[True] == {None, b"new"}


def test_with_nothing_flushed_nothing_need_be_there(bare, scratch):
    def op(folder):
        storage.write_file(folder / "file", b"new")

    assert seen(op, bare, scratch)[True] == {b"new"}
    with without_fsync():
        assert None in seen(op, bare, scratch)[True]
