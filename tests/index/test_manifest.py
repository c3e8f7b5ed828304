"""A version is committed once, read whole, and never passed over."""

import json
from contextlib import suppress
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray import storage
from clipray.errors import DamagedError, InputError, OutputError
from clipray.index.manifest import (
    Codec,
    Deletions,
    IndexFolder,
    IndexManifest,
    SegmentRecord,
    ShardRecord,
)
from clipray.manifest import FileRecord, ModelIdentity, ModelSource, digest

IDENTITY = ModelIdentity(name="tiny", dim=4, weights="w", preprocess="p", tokenizer="t")


CREATED = datetime(2026, 11, 25, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path):
    """An index folder in which the files of one segment lie."""
    folder = IndexFolder(tmp_path)
    for path in (folder.segment("s") / "index.faiss", folder.deletions / "d.npy"):
        path.parent.mkdir(parents=True)
        path.write_bytes(b"abc")
    return folder


def index_manifest(version=1, rows=5, **changes):
    record = FileRecord(bytes=3, sha256="ab" * 32)
    deletions = Deletions(name="d.npy", rows=2, file=record)
    segment = SegmentRecord(id="s", rows=rows, files={"index.faiss": record})
    worn = segment.model_copy(update={"deletions": deletions})
    manifest = IndexManifest(
        version=version,
        created=CREATED,
        model=IDENTITY,
        source=ModelSource(name="tiny"),
        modality="image",
        method="Flat",
        codec=Codec(name="c.faiss", file=record),
        shards=(ShardRecord(segments=(segment,)), ShardRecord(segments=(segment, worn))),
    )
    return manifest.model_copy(update=changes)


def test_versions_round_trip_and_the_newest_is_read(folder):
    assert folder.commit(index_manifest(1))
    assert folder.commit(index_manifest(2, rows=7))
    assert folder.versions() == [1, 2]
    assert folder.read() == index_manifest(2, rows=7)
    assert folder.read(1) == index_manifest(1)


def test_dead_rows_do_not_count(folder):
    manifest = index_manifest(rows=7)
    assert (manifest.rows, manifest.dead) == (19, 2)
    assert [shard.rows for shard in manifest.shards] == [7, 12]
    assert len(manifest.segments) == 3


def test_a_version_is_committed_once(folder):
    assert folder.commit(index_manifest(1, rows=5))
    assert not folder.commit(index_manifest(1, rows=6))
    assert folder.read() == index_manifest(1, rows=5)


def test_a_change_comes_on_top_of_what_others_committed(folder):
    folder.commit(index_manifest(1))
    seen = []

    def change(newest):
        seen.append(newest.version)
        if len(seen) == 1:  # another writer is first
            assert folder.commit(newest.next("remove", method="theirs"))
        return newest.next("append", why="ours")

    done = folder.amend(change)
    assert seen == [1, 2]
    assert (done.version, done.parent, done.verb) == (3, 2, "append")
    assert (done.method, done.why) == ("theirs", "ours")
    assert folder.read() == done


def test_no_change_is_no_version(folder):
    folder.commit(index_manifest(1))
    assert folder.amend(lambda newest: None) == index_manifest(1)
    assert folder.versions() == [1]


def test_a_writer_that_is_never_first_gives_up(folder, monkeypatch):
    folder.commit(index_manifest(1))
    monkeypatch.setattr(IndexFolder, "commit", lambda self, manifest: False)
    with pytest.raises(OutputError, match="another writer was first"):
        folder.amend(lambda newest: newest.next("tune"))


@pytest.mark.parametrize("lost", ["segments/s/index.faiss", "deletions/d.npy"])
def test_a_version_is_not_committed_without_its_files(folder, lost):
    (folder.root / lost).write_bytes(b"ab")
    with pytest.raises(OutputError, match=f"{lost}: gone before"):
        folder.commit(index_manifest(1))
    assert not folder.versions()
    assert folder.commit(index_manifest(1, placement="node"))  # they lie elsewhere


def test_gc_and_writers_keep_each_other_out(folder):
    lock = storage.locked(folder.lock)
    with folder.writing(), folder.writing(), pytest.raises(BlockingIOError), lock:
        pass
    with storage.locked(folder.lock), pytest.raises(OutputError, match="gc"), folder.writing():
        pass


def test_every_flipped_bit_and_every_cut_is_noticed(folder):
    folder.commit(index_manifest())
    path = folder.version_file(1)
    whole = path.read_bytes()

    @settings(max_examples=300, deadline=None)
    @given(st.integers(0, len(whole) - 1), st.integers(0, 8))
    def check(place, bit):
        changed = bytearray(whole)
        changed[place] ^= 1 << bit if bit < 8 else 0
        path.write_bytes(changed if bit < 8 else whole[:place])
        with suppress(DamagedError):
            assert folder.read() == index_manifest()  # white space may change

    check()


def test_a_changed_number_is_noticed(folder):
    folder.commit(index_manifest())
    path = folder.version_file(1)
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 6'))
    with pytest.raises(DamagedError, match="checksum"):
        folder.read()


@pytest.mark.parametrize("rest", [b"", b"{", b"[" * 100_000, b"[]", b"\xff", b'{"a": "\\ud800"}'])
def test_a_torn_newest_version_is_never_skipped(folder, rest):
    folder.commit(index_manifest(1))
    folder.version_file(2).write_bytes(rest)
    assert folder.versions() == [1, 2]
    with pytest.raises(DamagedError, match=r"0002\.json"):
        folder.read()
    assert folder.read(1).version == 1


def test_other_files_beside_the_versions_do_not_matter(folder):
    folder.commit(index_manifest(1))
    (folder.manifests / "00000000000000000001 (copy).json").write_text("{}")
    storage.staging_path(folder.version_file(2)).write_text("{")
    assert folder.read().version == 1


def test_a_newer_format_asks_for_a_newer_clipray(folder):
    folder.manifests.mkdir(exist_ok=True)
    tree = index_manifest().model_dump(mode="json") | {"format": 3, "new": {"field": 1}}
    folder.version_file(1).write_text(json.dumps(tree | {"checksum": digest(tree)}))
    with pytest.raises(DamagedError, match="format 3, this clipray reads 2; update"):
        folder.read()


def test_an_older_format_asks_for_a_new_build(folder):
    folder.manifests.mkdir()
    tree = index_manifest().model_dump(mode="json") | {"format": 1}
    folder.version_file(1).write_text(json.dumps(tree | {"checksum": digest(tree)}))
    with pytest.raises(
        DamagedError, match="format 1, this clipray reads 2; write the folder again"
    ):
        folder.read()


def test_no_index_and_no_such_version_are_told(folder):
    with pytest.raises(InputError, match="clipray index build"):
        folder.read()
    folder.commit(index_manifest(1))
    with pytest.raises(InputError, match=r"no version 3, only \[1\]"):
        folder.read(3)
