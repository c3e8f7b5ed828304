"""What is on disk is what was written, or it is refused by name."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray import storage
from clipray.embeddings import PartManifest
from clipray.errors import DamagedError, InputError, MismatchError, OutputError
from clipray.manifest import (
    Codec,
    FileRecord,
    IndexFolder,
    IndexManifest,
    ModelIdentity,
    ModelSource,
    SegmentRecord,
    ShardRecord,
    digest,
    read_json,
    write_json,
)

RECORD = FileRecord(bytes=3, sha256="ab" * 32)
IDENTITY = ModelIdentity(name="tiny", dim=4, weights="w", preprocess="p", tokenizer="t")


def index_manifest(version=1, rows=5):
    segment = SegmentRecord(id="s", rows=rows, files={"index.faiss": RECORD})
    return IndexManifest(
        version=version,
        model=IDENTITY,
        source=ModelSource(name="tiny"),
        modality="image",
        method="Flat",
        codec=Codec(name="c.faiss", file=RECORD),
        shards=(ShardRecord(segments=(segment,)), ShardRecord(segments=(segment, segment))),
    )


def test_versions_round_trip_and_the_newest_is_read(tmp_path):
    folder = IndexFolder(tmp_path)
    folder.commit(index_manifest(1))
    folder.commit(index_manifest(2, rows=7))
    assert folder.versions() == [1, 2]
    assert folder.read() == index_manifest(2, rows=7)
    assert folder.read(1) == index_manifest(1)
    assert folder.read().rows == 21


def test_a_version_is_committed_once(tmp_path):
    folder = IndexFolder(tmp_path)
    folder.commit(index_manifest(1, rows=5))
    with pytest.raises(OutputError, match="another writer"):
        folder.commit(index_manifest(1, rows=6))
    assert folder.read() == index_manifest(1, rows=5)


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path):
    folder = IndexFolder(tmp_path)
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


def test_a_changed_number_is_noticed(tmp_path):
    folder = IndexFolder(tmp_path)
    folder.commit(index_manifest())
    path = folder.version_file(1)
    path.write_text(path.read_text().replace('"rows": 5', '"rows": 6'))
    with pytest.raises(DamagedError, match="checksum"):
        folder.read()


@pytest.mark.parametrize("rest", [b"", b"{", b"[" * 100_000, b"[]", b"\xff", b'{"a": "\\ud800"}'])
def test_a_torn_newest_version_is_never_skipped(tmp_path, rest):
    folder = IndexFolder(tmp_path)
    folder.commit(index_manifest(1))
    folder.version_file(2).write_bytes(rest)
    assert folder.versions() == [1, 2]
    with pytest.raises(DamagedError, match=r"0002\.json"):
        folder.read()
    assert folder.read(1).version == 1


def test_other_files_beside_the_versions_do_not_matter(tmp_path):
    folder = IndexFolder(tmp_path)
    folder.commit(index_manifest(1))
    (folder.manifests / "00000000000000000001 (copy).json").write_text("{}")
    storage.staging_path(folder.version_file(2)).write_text("{")
    assert folder.read().version == 1


def test_a_newer_format_asks_for_a_newer_clipray(tmp_path):
    folder = IndexFolder(tmp_path)
    folder.manifests.mkdir()
    tree = index_manifest().model_dump(mode="json") | {"format": 2, "new": {"field": 1}}
    folder.version_file(1).write_text(json.dumps(tree | {"checksum": digest(tree)}))
    with pytest.raises(DamagedError, match="format 2, this clipray reads 1"):
        folder.read()


def test_no_index_and_no_such_version_are_told(tmp_path):
    folder = IndexFolder(tmp_path)
    with pytest.raises(InputError, match="clipray index build"):
        folder.read()
    folder.commit(index_manifest(1))
    with pytest.raises(InputError, match=r"no version 3, only \[1\]"):
        folder.read(3)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda path: path.unlink(), "missing"),
        (lambda path: path.write_bytes(b"ab"), "has 2 bytes"),
        (lambda path: path.write_bytes(b"abcd"), "has 4 bytes"),
        (lambda path: path.write_bytes(b"abd"), "sha256"),
    ],
)
def test_a_file_is_verified(tmp_path, damage, told):
    path = tmp_path / "file"
    record = FileRecord.of(storage.stream_file(path, lambda sink: sink.write(b"abc")))
    record.verify(path)
    damage(path)
    with pytest.raises(DamagedError, match=told) as caught:
        record.verify(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("field", ["dim", "weights", "preprocess", "tokenizer"])
def test_models_are_interchangeable_by_content_and_not_by_name(field):
    IDENTITY.require(IDENTITY.model_copy(update={"name": "renamed"}), "--model")
    other = IDENTITY.model_copy(update={field: 5 if field == "dim" else "x", "name": "other"})
    with pytest.raises(MismatchError, match=r"--model is other \(.*, but .* tiny \("):
        IDENTITY.require(other, "--model")


def test_a_file_of_another_kind_is_no_manifest(tmp_path):
    path = tmp_path / "m.json"
    write_json(path, ModelSource(name="a"))
    with pytest.raises(DamagedError, match="not a PartManifest"):
        read_json(PartManifest, path)
    with pytest.raises(DamagedError, match="cannot be read"):
        read_json(PartManifest, tmp_path / "none.json")


def test_digest_does_not_depend_on_the_order_of_keys():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


def test_paths_of_a_model_become_absolute_and_tags_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "openai").mkdir()  # a folder that happens to be called as a tag is
    (tmp_path / "w.pt").touch()
    tagged = ModelSource(name="ViT-B-32", pretrained="openai")
    assert tagged.absolute() == tagged
    filed = ModelSource(name="ViT-B-32", pretrained="w.pt").absolute()
    assert filed == ModelSource(name="ViT-B-32", pretrained=str(tmp_path / "w.pt"))
