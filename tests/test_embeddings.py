"""Reading an embeddings folder: what is finished, and only while it is unchanged."""

import io

import numpy as np
import pytest
from pydantic import ValidationError

from clipray import storage
from clipray.embeddings import (
    EmbeddingSettings,
    EmbeddingsFolder,
    EmbeddingsManifest,
    PartManifest,
    Parts,
)
from clipray.errors import DamagedError, InputError
from clipray.manifest import FileRecord, ModelIdentity, ModelSource, modalities_of, write_json
from tests.handmade import random_halves, write_embeddings

RECORD = FileRecord(bytes=3, sha256="ab" * 32)
IDENTITY = ModelIdentity(name="tiny", dim=4, weights="w", preprocess="p", tokenizer="t")
KEYS = [["s/a", "s/b"], ["s/c", "s/d", "s/e"], []]


@pytest.fixture
def root(tmp_path):
    return write_embeddings(tmp_path, [(keys, random_halves(len(keys))) for keys in KEYS])


def test_parts_are_read_by_number(root):
    parts = Parts.open(root)
    assert (list(parts), len(parts), parts.rows, parts.dim) == ([0, 1], 2, 5, 16)
    assert [parts.keys(number) for number in parts] == KEYS[:2]
    np.testing.assert_array_equal(parts.vectors(1), random_halves(3))
    some = parts.only([1])
    assert (list(some), some.rows) == ([1], 3)


def test_both_towers_of_real_embeddings_are_found(embeddings):
    images, texts = Parts.open(embeddings), Parts.open(embeddings, "text")
    assert (images.modality, texts.modality) == ("image", "text")
    assert images.rows == texts.rows == 40
    assert images.keys(0) == texts.keys(0)
    assert not np.array_equal(images.vectors(0), texts.vectors(0))


def test_an_unfinished_part_is_not_there(root):
    EmbeddingsFolder(root).done(1).unlink()
    assert list(Parts.open(root)) == [0]


def test_nothing_to_read_is_told(root, tmp_path):
    with pytest.raises(InputError, match="holds image embeddings, none of text"):
        Parts.open(root, "text")
    with pytest.raises(InputError, match="no embeddings folder"):
        Parts.open(tmp_path / "none")
    for number in (0, 1, 2):
        EmbeddingsFolder(root).done(number).unlink()
    with pytest.raises(InputError, match="no finished part with rows; run `clipray embed`"):
        Parts.open(root)
    empty = write_embeddings(tmp_path / "empty", [([], random_halves(0))])
    with pytest.raises(InputError, match="all samples were rejected or filtered out"):
        Parts.open(empty)


@pytest.mark.parametrize("name", ["img_emb/img_emb_00001.npy", "metadata/metadata_00001.parquet"])
@pytest.mark.parametrize("damage", ["cut", "changed", "missing"])
def test_a_damaged_file_is_named(root, name, damage):
    path = root / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    parts = Parts.open(root)
    with pytest.raises(DamagedError, match=path.name.replace(".", r"\.")):
        parts.vectors(1) if "npy" in name else parts.table(1)
    assert parts.keys(0) == KEYS[0]


def test_a_file_that_its_marker_does_not_name_is_not_trusted(root):
    folder = EmbeddingsFolder(root)
    folder.done(1).write_bytes(folder.done(0).read_bytes())
    with pytest.raises(DamagedError, match="does not name it"):
        Parts.open(root).vectors(1)


def saved(value):
    written = io.BytesIO()
    np.savez(written, value) if isinstance(value, list) else np.save(written, value)
    return written.getvalue()


@pytest.mark.parametrize(
    "data",
    [
        saved(random_halves(2)),
        saved(random_halves(3).astype("f4")),
        saved(random_halves(3).astype(">f2")),
        saved(random_halves(3)[:, :8]),
        saved(np.array([print] * 3, dtype=object)),
        saved([random_halves(3)]),
        saved(np.zeros((3, 16), "f2")).replace(b"(3, 16)", b"(3, %d)" % 10**9),
        b"\x93NUMPY\1\0\x10\x27" + b"(" * 10_000,
        b"",
    ],
    ids=["short", "float32", "swapped", "narrow", "pickle", "archive", "huge", "deep", "empty"],
)
def test_vectors_of_another_kind_are_refused_with_the_right_checksum_too(root, data):
    folder = EmbeddingsFolder(root)
    path = folder.vectors(1, "image")
    path.write_bytes(data)
    record = FileRecord(bytes=len(data), sha256=storage.sha256_file(path))
    files = folder.part(1).files | {str(path.relative_to(root)): record}
    write_json(folder.done(1), folder.part(1).model_copy(update={"files": files}))
    with pytest.raises(
        DamagedError, match=r"img_emb_00001\.npy: expected float16 of shape \(3, 16"
    ):
        Parts.open(root).vectors(1)


def test_embeddings_and_their_parts_round_trip(tmp_path):
    folder = EmbeddingsFolder(tmp_path)
    with pytest.raises(InputError, match="clipray embed --output"):
        folder.read()
    manifest = EmbeddingsManifest(
        model=IDENTITY,
        source=ModelSource(name="tiny"),
        settings=EmbeddingSettings(modality="both", filter={"width": 1}),
        shards=("a/0.tar",),
    )
    part = PartManifest(
        shard="a/é.tar",
        signature="1",
        model="m",
        samples=7,
        rows=1,
        rejected={"x": 2},
        filtered=4,
        files={"f": RECORD},
    )
    write_json(folder.manifest, manifest)
    write_json(folder.done(12), part)
    storage.staging_path(folder.done(13)).write_text("{")
    assert folder.read() == manifest
    assert folder.parts() == {12: part}
    assert manifest.modalities == modalities_of("both") == ("image", "text")
    assert modalities_of("text") == ("text",)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_marker_that_does_not_account_for_every_sample_is_refused(rows):
    with pytest.raises(ValidationError, match=f"{rows + 5} samples are accounted for, 6 were"):
        PartManifest(
            shard="s", signature="1", model="m", samples=6, rows=rows, rejected={"x": 2},
            filtered=3, files={},
        )  # fmt: skip


def test_settings_tell_how_they_differ():
    mine = EmbeddingSettings(modality="both", filter={"width": 1})
    assert mine.differences(mine) == []
    assert mine.differences(EmbeddingSettings(modality="image")) == [
        "modality both, not image",
        "filter {'width': 1}, not None",
    ]
