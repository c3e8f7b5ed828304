"""The rows of a segment are found by id and read where they lie."""

import time

import numpy as np
import pyarrow as pa
import pytest

from clipray.errors import DamagedError
from clipray.index.table import IDS_FILE, ROWS_FILE, RowTable, read_columns, row_id, row_ids
from tests.handmade import keys_ids, random_halves, row_table, write_segment

ROWS = 2500  # written as three batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("table") / "s"
    captions = [None if row % 7 == 0 else f"caption {row}" for row in range(ROWS)]
    rows = row_table([f"s/{row}" for row in range(ROWS)], caption=captions, n=range(ROWS))
    write_segment(folder, random_halves(ROWS, 4), rows)
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return RowTable(folder)


def test_every_id_is_found_at_its_row(table):
    ids = keys_ids(ROWS)
    np.testing.assert_array_equal(table.ids, ids)
    assert table.find(ids).tolist() == list(range(ROWS))
    shuffled = np.random.default_rng(0).permutation(ROWS)
    assert table.find(ids[shuffled]).tolist() == shuffled.tolist()


def test_an_id_that_is_not_there_has_no_row(table):
    ids = keys_ids(ROWS)
    strange = np.array([0, -1, ids.min() - 1, ids.max() + 1, 2**63 - 1, row_id("s/none")])
    assert table.find(strange).tolist() == [-1] * 6
    assert table.find(np.empty(0, np.int64)).tolist() == []


def test_a_row_has_the_columns_that_are_asked_for(table):
    for row in (0, 999, 1000, 1999, 2000, ROWS - 1):
        caption = None if row % 7 == 0 else f"caption {row}"
        every = {"id": row_id(f"s/{row}"), "key": f"s/{row}", "caption": caption, "n": row}
        assert table.row(row) == every
        assert table.row(row, ["n", "unknown"]) == {"key": f"s/{row}", "n": row}
        assert table.row(row, []) == {"key": f"s/{row}"}


def test_columns_are_those_that_are_not_ours(table, folder):
    assert len(table) == ROWS
    assert table.columns == read_columns(folder) == ["caption", "n"]
    assert table.schema.names == ["id", "key", "caption", "n"]


def test_a_column_is_read_row_by_row(table):
    allowed = np.arange(ROWS) % 2 == 1
    assert list(table.column("n")) == [(f"s/{row}", row) for row in range(ROWS)]
    assert list(table.column("n", allowed)) == [(f"s/{row}", row) for row in range(1, ROWS, 2)]
    assert list(table.column("unknown", allowed)) == []


def test_a_filter_becomes_a_mask(table):
    expected = np.arange(ROWS) < 1500
    np.testing.assert_array_equal(table.mask({"n": {"$lt": 1500}}), expected)
    np.testing.assert_array_equal(table.mask({"caption": "caption 8"}), np.arange(ROWS) == 8)
    assert not table.mask({"unknown": 1}).any()


@pytest.mark.parametrize("rows", [[], [0], [999, 1000], [3, 998, 1500, 2499], range(ROWS)])
def test_some_rows_are_taken(table, rows):
    taken = table.take(np.array(rows, np.int64))
    assert taken.schema == table.schema
    assert taken.column("n").to_pylist() == list(rows)
    assert taken.column("key").to_pylist() == [f"s/{row}" for row in rows]


def test_a_table_without_rows_is_one(tmp_path):
    write_segment(tmp_path / "s", random_halves(0, 4), row_table([], n=pa.array([], pa.int64())))
    table = RowTable(tmp_path / "s")
    assert len(table) == 0
    assert table.find(np.array([1, 2])).tolist() == [-1, -1]
    assert len(table.mask({"n": 1})) == 0
    assert list(table.column("n")) == []
    assert table.take(np.empty(0, np.int64)).num_rows == 0


@pytest.mark.parametrize(
    "wrong", [np.arange(3), np.zeros((3, 2), np.int64), np.zeros((2, 2), np.int32)]
)
def test_ids_of_another_shape_are_damage(tmp_path, wrong):
    write_segment(tmp_path / "s", random_halves(2, 4), row_table(["a", "b"]))
    np.save(tmp_path / "s" / IDS_FILE, wrong)
    with pytest.raises(DamagedError, match=r"ids\.npy: has shape"):
        RowTable(tmp_path / "s")


@pytest.mark.parametrize("name", [IDS_FILE, ROWS_FILE])
@pytest.mark.parametrize("rest", [None, b"", b"nonsense" * 100])
def test_what_cannot_be_read_is_damage_and_named(tmp_path, name, rest):
    write_segment(tmp_path / "s", random_halves(2, 4), row_table(["a", "b"]))
    path = tmp_path / "s" / name
    path.unlink()
    if rest is not None:
        path.write_bytes(rest)
    with pytest.raises(DamagedError, match=name.replace(".", r"\.")):
        RowTable(tmp_path / "s")
    if name == ROWS_FILE:
        with pytest.raises(DamagedError, match=r"rows\.arrow"):
            read_columns(tmp_path / "s")


def test_files_of_different_segments_are_damage(tmp_path):
    write_segment(tmp_path / "a", random_halves(2, 4), row_table(["a", "b"]))
    write_segment(tmp_path / "b", random_halves(1, 4), row_table(["a"]))
    (tmp_path / "b" / ROWS_FILE).replace(tmp_path / "a" / ROWS_FILE)
    with pytest.raises(DamagedError, match="have not the same rows"):
        RowTable(tmp_path / "a")


def test_ids_of_many_keys_are_those_of_each():
    keys = ["a", "s/1", "s/🦜", ""]
    assert row_ids(keys).tolist() == [row_id(key) for key in keys]
    assert row_ids([]).dtype == np.int64
    assert all(0 <= one < 2**63 for one in row_ids(keys).tolist())


def test_a_row_of_very_many_columns_is_read_soon(tmp_path):
    names = [f"column {number}" for number in range(10_000)]
    rows = pa.table({"id": [7], "key": ["a"]} | {name: ["b"] for name in names})
    np.save(tmp_path / IDS_FILE, np.array([[7], [0]]))
    with pa.ipc.new_file(str(tmp_path / ROWS_FILE), rows.schema) as file:
        file.write_table(rows)
    table = RowTable(tmp_path)
    began = time.process_time()
    assert len(table.row(0)) == 10_002
    assert time.process_time() - began < 3
