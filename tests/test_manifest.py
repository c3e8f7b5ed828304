"""What is on disk is what was written, or it is refused by name."""

import pytest

from clipray import storage
from clipray.embeddings import PartManifest
from clipray.errors import DamagedError, MismatchError
from clipray.manifest import FileRecord, ModelIdentity, ModelSource, digest, read_json, write_json

IDENTITY = ModelIdentity(name="tiny", dim=4, weights="w", preprocess="p", tokenizer="t")


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
