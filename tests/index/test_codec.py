"""One quantizer for all shards: trained once, published whole, verified before it is used."""

import faiss
import numpy as np
import pytest

from clipray.errors import ConfigError, DamagedError
from clipray.index.codec import (
    LEAST_ROWS,
    ROWS_PER_LIST,
    empty_index,
    filling,
    train,
    training_rows,
)
from clipray.index.manifest import IndexFolder
from clipray.index.method import inverted_of
from tests.handmade import random_halves

DIM = 16
METHODS = [
    "IVF", "IVF4,SQ8,RFlat", "OPQ4_8,IVF4,PQ4x4fs", "IVF4_HNSW32,PQ4x4fs", "PQ4x4", "PQ4x4fs",
    "SQ8", "HNSW32_SQ8", "PCA8,HNSW32", "RaBitQ", "IVF4,RaBitQ",
]  # fmt: skip


@pytest.fixture(scope="module")
def sample():
    return random_halves(300, DIM).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    return IndexFolder(tmp_path / "index")


@pytest.mark.parametrize(
    ("method", "rows", "wanted"),
    [
        ("Flat", 10**9, 0),
        ("HNSW32", 10**9, 0),
        ("SQfp16", 10**9, 0),
        ("IVF", 1000, 1000),
        ("PQ4x4fs", LEAST_ROWS + 1, LEAST_ROWS),
        ("IVF64,Flat", 10**9, LEAST_ROWS),
        ("IVF4096,Flat", 10**9, ROWS_PER_LIST * 4096),
        ("IVF65536_HNSW32,PQ4x4fs", 10**9, ROWS_PER_LIST * 65_536),
    ],
)
def test_it_is_trained_on_as_many_rows_as_it_has_lists(method, rows, wanted):
    assert training_rows(method, DIM, rows) == wanted


@pytest.mark.parametrize("method", METHODS)
def test_what_is_published_is_trained_and_empty(folder, sample, method):
    codec = train(folder, method, 300, sample)
    assert [path.name for path in folder.codecs.iterdir()] == [codec.name]
    codec.file.verify(folder.codecs / codec.name)
    index = empty_index(folder, codec, method, DIM, 300)
    assert index.is_trained
    assert (index.ntotal, index.d) == (0, DIM)
    index.add(sample)
    assert index.ntotal == 300


def test_the_same_rows_make_the_same_codec(folder, sample):
    one, two = (train(folder, "IVF8,PQ4x4fs", 300, sample) for _ in range(2))
    other = train(folder, "IVF8,PQ4x4fs", 300, sample[:200])
    assert one == two != other
    assert {path.name for path in folder.codecs.iterdir()} == {one.name, other.name}


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_damaged_codec_is_not_used(folder, sample, damage):
    codec = train(folder, "IVF8,Flat", 300, sample)
    path = folder.codecs / codec.name
    data = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(data[:-1] if damage == "cut" else data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(DamagedError, match=codec.name.replace(".", r"\.")):
        empty_index(folder, codec, "IVF8,Flat", DIM, 300)


def test_methods_without_a_codec_begin_empty(folder):
    assert empty_index(folder, None, "Flat", DIM, 300) is None
    index = empty_index(folder, None, "HNSW32", DIM, 300)
    assert (index.ntotal, index.d, index.is_trained) == (0, DIM, True)
    assert not folder.root.exists()


def test_too_few_rows_to_train_on_are_told(folder, sample):
    with pytest.raises(ConfigError, match="'PQ4': cannot be trained on 5 rows"):
        train(folder, "PQ4", 5, sample[:5])
    assert not folder.root.exists()


class PretendGpus:
    """One GPU, as Faiss's Python sees it; its indices are copies on the CPU."""

    def __init__(self, monkeypatch):
        self.moved = []
        monkeypatch.setattr(faiss, "get_num_gpus", lambda: 1)
        monkeypatch.setattr(faiss, "index_cpu_to_all_gpus", self.move, raising=False)

    def move(self, index):
        self.moved.append(faiss.clone_index(index))
        return self.moved[-1]


def test_a_gpu_trains_and_fills_where_there_is_one(monkeypatch, folder, sample):
    plain = empty_index(folder, train(folder, "IVF8,Flat", 300, sample), "IVF8,Flat", DIM, 300)
    plain.add(sample)
    gpus = PretendGpus(monkeypatch)
    codec = train(folder, "IVF8,Flat", 300, sample)
    assert len(gpus.moved) == 1
    index = empty_index(folder, codec, "IVF8,Flat", DIM, 300)
    own = inverted_of(index).quantizer.this
    with filling(index):
        assert inverted_of(index).quantizer.this == gpus.moved[1].this
        index.add(sample)
    assert inverted_of(index).quantizer.this == own
    serialized = [faiss.serialize_index(each) for each in (plain, index)]
    np.testing.assert_array_equal(*serialized)


@pytest.mark.parametrize(
    "index",
    [None, faiss.IndexHNSWFlat(DIM, 8), faiss.index_factory(DIM, "IVF8_HNSW8,Flat")],
)
def test_nothing_is_moved_where_no_list_is_found_by_a_scan(monkeypatch, index):
    gpus = PretendGpus(monkeypatch)
    with filling(index):
        assert gpus.moved == []
