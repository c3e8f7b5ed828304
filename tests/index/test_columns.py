"""Columns of several tables become those of one, and no value changes on the way."""

import time

import pyarrow as pa
import pytest

from clipray.index.columns import columns_of, common_schema, conform, index_names


@pytest.mark.parametrize(
    ("kinds", "meeting"),
    [
        ([pa.int64(), pa.int64()], pa.int64()),
        ([pa.null(), pa.bool_()], pa.bool_()),
        ([pa.int64(), pa.float64()], pa.float64()),
        ([pa.int32(), pa.int64()], pa.int64()),
        ([pa.int64(), pa.string()], pa.string()),
        ([pa.bool_(), pa.int64()], pa.string()),
        ([pa.float64(), pa.null(), pa.string(), pa.int64()], pa.string()),
        ([pa.list_(pa.int64()), pa.int64()], pa.string()),
        ([pa.struct([("a", pa.int64())]), pa.string()], pa.string()),
        ([pa.timestamp("s"), pa.timestamp("ms")], pa.timestamp("ms")),
        ([pa.uint64(), pa.null()], pa.uint64()),
        ([pa.uint64(), pa.int64()], pa.string()),
        ([pa.decimal128(2, 1), pa.int64()], pa.string()),
        ([pa.list_(pa.null()), pa.list_(pa.int8())], pa.list_(pa.int8())),
    ],
)
def test_types_meet_or_become_text(kinds, meeting):
    for found in (kinds, kinds[::-1]):
        schema = common_schema(pa.schema([("a", kind), ("b", pa.int8())]) for kind in found)
        assert schema == pa.schema([("a", meeting), ("b", pa.int8())])


def test_columns_of_all_are_there_in_the_order_in_which_they_came():
    one, two = pa.schema([("id", pa.int64()), ("a", pa.int8())]), pa.schema([("b", pa.int8())])
    assert common_schema([one, two]).names == ["id", "a", "b"]
    assert common_schema([]).names == []


def test_rows_conform_to_the_columns_of_all():
    schema = pa.schema(
        [
            ("same", pa.int64()), ("number", pa.float64()), ("text", pa.string()),
            ("list", pa.string()), ("bytes", pa.string()), ("missing", pa.bool_()),
        ]
    )  # fmt: skip
    columns = {
        "bytes": [b"\xff", None],
        "list": [[1, 2], None],
        "text": [True, None],
        "number": [1, None],
        "same": [7, 8],
    }
    table = conform(pa.table(columns), schema)
    assert table.schema == schema
    assert table.to_pylist() == [
        {
            "same": 7, "number": 1.0, "text": "true", "list": "[1, 2]", "bytes": "b'\\xff'",
            "missing": None,
        },
        dict.fromkeys(schema.names) | {"same": 8},
    ]  # fmt: skip


def test_large_numbers_do_not_wrap_around():
    tables = [pa.table({"hash": pa.array([2**63 + 5], pa.uint64())}), pa.table({"hash": [5]})]
    schema = common_schema(table.schema for table in tables)
    rows = [conform(table, schema).to_pylist() for table in tables]
    assert rows == [[{"hash": "9223372036854775813"}], [{"hash": "5"}]]


def test_columns_of_the_input_keep_their_names_beside_ours():
    assert index_names(["image_path", "id", "input_id", "key", "width"]) == [
        "key",
        "input_input_id",
        "input_id",
        "input_key",
        "width",
    ]
    assert index_names(["image_path", "caption"]) == ["key", "caption"]


def test_parts_have_the_columns_of_the_index():
    one = pa.schema([("width", pa.int64()), ("image_path", pa.string())])
    two = pa.schema([("image_path", pa.string()), ("width", pa.string()), ("id", pa.int8())])
    assert columns_of([one, two]) == pa.schema(
        [
            ("id", pa.int64()), ("key", pa.string()), ("width", pa.string()),
            ("input_id", pa.int8()),
        ]
    )  # fmt: skip


def test_very_many_columns_take_no_time():
    schema = pa.schema([(f"column {number}", pa.string()) for number in range(10_000)])
    began = time.process_time()
    assert conform(schema.empty_table(), schema).schema == schema
    assert time.process_time() - began < 5
