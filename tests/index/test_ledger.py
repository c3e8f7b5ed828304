"""A build that was killed goes on; what has changed since is built again."""

import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.index import construct as constructing
from clipray.index import ledger as ledgers
from clipray.index.construct import IndexOptions, construct
from clipray.index.ledger import Ledger
from clipray.index.manifest import IndexFolder
from clipray.index.reader import Index
from clipray.index.workers import Here
from tests.handmade import cut_parts, random_halves, write_embeddings

SHARDS, ROWS = 4, 80


@pytest.fixture
def root(tmp_path):
    return write_embeddings(tmp_path / "e", cut_parts(random_halves(ROWS), SHARDS))


@pytest.fixture
def folder(tmp_path):
    return IndexFolder(tmp_path / "index")


class Counted:
    """A function that counts its calls, and dies instead of the one after `lives`."""

    def __init__(self, monkeypatch, module, name, lives=10**9):
        self._real, self.calls, self.lives = getattr(module, name), 0, lives
        monkeypatch.setattr(module, name, self)

    def __call__(self, *args):
        if self.calls == self.lives:
            raise KeyboardInterrupt
        self.calls += 1
        return self._real(*args)


@pytest.fixture
def segments(monkeypatch):
    return Counted(monkeypatch, ledgers, "build_segment")


@pytest.fixture
def trainings(monkeypatch):
    return Counted(monkeypatch, constructing.codecs, "train")


def build(root, folder, method="IVF4,Flat"):
    options = IndexOptions(method=method, shards=SHARDS)
    return construct(Parts.open(root), folder, options, Here(folder.root))


def killed_build(root, folder, segments, after, method="IVF4,Flat"):
    segments.lives = segments.calls + after
    with pytest.raises(KeyboardInterrupt):
        build(root, folder, method)
    segments.lives = 10**9


@pytest.mark.parametrize("after", range(SHARDS))
def test_a_killed_build_goes_on(root, folder, segments, trainings, after):
    killed_build(root, folder, segments, after)
    assert len(list(folder.segments.iterdir()) if after else []) == after
    made = build(root, folder)
    assert (segments.calls, trainings.calls) == (SHARDS, 1)
    assert len(list(folder.segments.iterdir())) == SHARDS
    folder.commit(made.manifest)
    assert len(Index.open(folder.root)) == ROWS


def test_a_finished_build_that_was_not_committed_costs_nothing_again(root, folder, segments):
    first = build(root, folder).manifest
    again = build(root, folder).manifest
    assert segments.calls == SHARDS
    assert (again.shards, again.codec) == (first.shards, first.codec)


@pytest.mark.parametrize("name", ["index.faiss", "rows.arrow", "vectors.npy", "ids.npy"])
@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_file_that_has_changed_is_built_again(root, folder, segments, name, damage):
    killed_build(root, folder, segments, 2)
    path = next(folder.segments.glob(f"*/{name}"))
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    made = build(root, folder)
    assert segments.calls == SHARDS + 1
    folder.commit(made.manifest)
    assert len(Index.open(folder.root)) == ROWS


@pytest.mark.parametrize("damage", ["changed", "cut", "missing"])
def test_a_codec_that_has_changed_is_trained_again(root, folder, segments, trainings, damage):
    killed_build(root, folder, segments, 2)
    (path,) = folder.codecs.iterdir()
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    build(root, folder)
    assert (segments.calls, trainings.calls) == (SHARDS, 2)
    assert path.read_bytes() == data


def test_shards_of_another_codec_are_built_again(monkeypatch, root, folder, segments):
    killed_build(root, folder, segments, 2)
    for path in folder.codecs.iterdir():
        path.unlink()
    train = constructing.codecs.train
    monkeypatch.setattr(
        constructing.codecs, "train", lambda *args: train(*args[:3], args[3][::2].copy())
    )
    build(root, folder)
    assert segments.calls == SHARDS + 2


@pytest.mark.parametrize("rest", [b"", b"{", b"[]", b'{"segment": {}}'])
def test_a_torn_entry_is_as_good_as_none(root, folder, segments, rest):
    killed_build(root, folder, segments, 2)
    entry = next(folder.building.glob("*/shard_00001.json"))
    entry.write_bytes(rest)
    build(root, folder)
    assert segments.calls == SHARDS + 1


def test_other_embeddings_or_options_start_anew(tmp_path, root, folder, segments):
    killed_build(root, folder, segments, 2)
    killed_build(root, folder, segments, 1, method="HNSW32")
    assert segments.calls == 3
    other = write_embeddings(tmp_path / "o", cut_parts(random_halves(ROWS, seed=1), SHARDS))
    made = build(other, folder)
    assert segments.calls == 3 + SHARDS
    folder.commit(made.manifest)
    (shard, *_) = Index.open(folder.root).shards
    np.testing.assert_array_equal(shard.segments[0].vectors, random_halves(ROWS, seed=1)[:20])


def test_the_fingerprint_is_of_files_and_options_and_not_of_places(tmp_path, root):
    parts = Parts.open(root)
    same = Parts.open(write_embeddings(tmp_path / "s", cut_parts(random_halves(ROWS), SHARDS)))
    fingerprint = Ledger.of(tmp_path, parts, "Flat", 2).fingerprint
    assert Ledger.of(tmp_path / "x", same, "Flat", 2).fingerprint == fingerprint
    others = [
        Ledger.of(tmp_path, parts, "IVF", 2),
        Ledger.of(tmp_path, parts, "Flat", 3),
        Ledger.of(tmp_path, parts.only([0, 1]), "Flat", 2),
    ]
    assert len({fingerprint, *(other.fingerprint for other in others)}) == 4


def test_after_the_commit_nothing_is_left(root, folder):
    made = build(root, folder)
    made.ledger.clear()
    assert not folder.building.exists()


def test_a_shard_without_a_row_is_finished_as_well(tmp_path, folder, segments):
    vectors = random_halves(40)
    vectors[:20] = 0
    root = write_embeddings(tmp_path / "z", cut_parts(vectors, 2))
    options = IndexOptions(method="Flat", shards=2)
    for _ in range(2):
        made = construct(Parts.open(root), folder, options, Here(folder.root))
        assert [len(shard.segments) for shard in made.manifest.shards] == [0, 1]
    assert segments.calls == 2
