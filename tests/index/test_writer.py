"""A segment is written as it comes, and its records are those of what was meant."""

import errno
from itertools import pairwise

import faiss
import numpy as np
import pyarrow as pa
import pytest

from clipray.errors import DamagedError
from clipray.index.table import IDS_FILE, ROWS_FILE, RowTable
from clipray.index.writer import INDEX_FILE, VECTORS_FILE, SegmentWriter, write_faiss
from tests.handmade import random_halves, row_table, write_segment

DIM, ROWS = 16, 50


def rows(first, last):
    return row_table([f"s/{row}" for row in range(first, last)])


def write(folder, cuts, vectors, index=None):
    folder.mkdir()
    ends = [0, *cuts, len(vectors)]
    with SegmentWriter(folder, *vectors.shape, rows(0, 0).schema, index) as writer:
        for start, stop in pairwise(ends):
            writer.add(vectors[start:stop], rows(start, stop))
    return writer.files


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS, DIM)


def test_pieces_make_the_same_as_the_whole(tmp_path, vectors):
    one = write(tmp_path / "one", [], vectors, faiss.IndexFlatIP(DIM))
    three = write(tmp_path / "three", [1, 30], vectors, faiss.IndexFlatIP(DIM))
    same = (VECTORS_FILE, IDS_FILE, INDEX_FILE)
    assert {name: one[name] for name in same} == {name: three[name] for name in same}
    np.testing.assert_array_equal(np.load(tmp_path / "three" / VECTORS_FILE), vectors)
    tables = [RowTable(tmp_path / name) for name in ("one", "three")]
    assert tables[0].take(np.arange(ROWS)).equals(tables[1].take(np.arange(ROWS)))


def test_records_describe_the_files(tmp_path, vectors):
    files = write(tmp_path / "s", [20], vectors, faiss.IndexFlatIP(DIM))
    assert {path.name for path in (tmp_path / "s").iterdir()} == set(files)
    assert set(files) == {INDEX_FILE, ROWS_FILE, VECTORS_FILE, IDS_FILE}
    for name, record in files.items():
        record.verify(tmp_path / "s" / name)
    index = faiss.read_index(str(tmp_path / "s" / INDEX_FILE))
    np.testing.assert_array_equal(index.reconstruct_n(0, ROWS), vectors.astype(np.float32))


def test_an_exact_segment_has_no_index_file(tmp_path, vectors):
    assert set(write(tmp_path / "s", [], vectors)) == {ROWS_FILE, VECTORS_FILE, IDS_FILE}


def test_vectors_are_float16_in_rows_whatever_comes(tmp_path, vectors):
    write(tmp_path / "s", [], np.asfortranarray(vectors.astype(np.float32)))
    stored = np.load(tmp_path / "s" / VECTORS_FILE, mmap_mode="r")
    assert stored.dtype == np.float16
    assert stored.flags.c_contiguous
    np.testing.assert_array_equal(stored, vectors)


@pytest.mark.parametrize("count", [ROWS - 1, ROWS + 1])
def test_other_rows_than_planned_are_told(tmp_path, vectors, count):
    writer = SegmentWriter(tmp_path, count, DIM, rows(0, 0).schema, None)
    with pytest.raises(DamagedError, match=f"50 rows came, {count} were planned"), writer:
        writer.add(vectors, rows(0, ROWS))


def test_an_error_inside_is_the_one_that_is_told(tmp_path, vectors):
    writer = SegmentWriter(tmp_path, ROWS, DIM, rows(0, 0).schema, None)
    with pytest.raises(KeyError, match="mine"), writer:
        raise KeyError("mine")
    assert writer.files == {}


def test_columns_of_all_kinds_come_back(tmp_path):
    columns = {
        "text": pa.array(["a", None, "🦜"]),
        "list": pa.array([[1, 2], None, []]),
        "struct": pa.array([{"a": 1}, None, {"a": None}]),
        "time": pa.array([1, None, 3], pa.timestamp("ms")),
        "bool": pa.array([True, None, False]),
        "bytes": pa.array([b"\xff", None, b""]),
        "null": pa.nulls(3),
    }
    table = row_table(["a", "b", "c"], **columns)
    write_segment(tmp_path / "s", random_halves(3, DIM), table)
    assert RowTable(tmp_path / "s").take(np.arange(3)).to_pylist() == table.to_pylist()


def test_a_full_disk_is_seen_where_faiss_would_not(vectors):
    class Full:
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    index = faiss.IndexFlatIP(DIM)
    index.add(vectors.astype(np.float32))
    with pytest.raises(OSError, match="No space left") as caught:
        write_faiss(index, Full())
    assert caught.value.errno == errno.ENOSPC
