"""A filter says the same of a table's columns as of its rows."""

from decimal import Decimal
from time import perf_counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.filters import accepts, check
from clipray.masks import row_mask

TEXT = st.text(st.sampled_from("ab.*\\[\0é\uffff\U0001f600"), max_size=4)
UNPAIRED = st.text(st.sampled_from("a\ud800\udfffé\uffff"), max_size=3)
INTEGERS = {f"{sign}int{bits}": (sign, bits) for sign in ("", "u") for bits in (8, 16, 32, 64)}
EDGES = [2**53 + 1, 2**24 + 1, 2**31, 2**63 - 1, 2**64, 10**400, -(2**63), -(10**400), 65520]
NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.sampled_from([edge + near for edge in EDGES for near in (-1, 0, 1)]),
    st.sampled_from([0.5, -0.0, 2.0**53, 2.0**63, 2.0**64, 1e300, 3.4028236e38, 0.1, 5e-324]),
    st.floats(),
)
SCALARS = st.one_of(NUMBERS, TEXT, UNPAIRED, st.booleans())


def _integers(sign, bits):
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    edges = [low, high, *(edge for edge in EDGES[:4] if edge <= high)]
    return st.one_of(st.integers(max(low, -3), 3), st.integers(low, high), st.sampled_from(edges))


VALUES = {
    **{pa.type_for_alias(name): _integers(*parts) for name, parts in INTEGERS.items()},
    pa.float16(): st.floats(width=16),
    pa.float32(): st.floats(width=32) | st.sampled_from([0.5, -0.0, 2.0**24]),
    pa.float64(): st.floats() | st.sampled_from([0.5, -0.0, 2.0**53, 1e300]),
    pa.bool_(): st.booleans(),
    pa.string(): TEXT,
    pa.large_string(): TEXT,
    pa.string_view(): TEXT,
    pa.binary(): st.sampled_from([b"", b"a"]),
    pa.binary_view(): st.sampled_from([b"", b"a"]),
    pa.list_(pa.int64()): st.lists(st.integers(0, 1), max_size=1),
    pa.struct([("a", pa.int64())]): st.fixed_dictionaries({"a": st.integers(0, 1)}),
    pa.timestamp("us"): st.integers(0, 2),
    pa.duration("s"): st.integers(0, 2),
    pa.decimal128(5, 1): st.sampled_from([Decimal(0), Decimal("0.5")]),
    pa.null(): st.none(),
}
ENCODED = [pa.string(), pa.large_string(), pa.string_view(), pa.int64(), pa.float32(), pa.bool_()]


@st.composite
def plain(draw, kinds=tuple(VALUES), size=None):
    kind = draw(st.sampled_from(kinds))
    least, most = (0, 8) if size is None else (size, size)
    values = draw(st.lists(st.none() | VALUES[kind], min_size=least, max_size=most))
    return pa.array(values, kind)


@st.composite
def dictionaries(draw, size):
    known = draw(plain([*ENCODED, pa.list_(pa.int64())]))
    places = st.none() | st.integers(0, len(known) - 1) if len(known) else st.none()
    indices = draw(st.lists(places, min_size=size, max_size=size))
    kind = draw(st.sampled_from([pa.int8(), pa.uint32()]))
    return pa.DictionaryArray.from_arrays(pa.array(indices, kind), known)


@st.composite
def runs(draw, size):
    values = draw(plain(ENCODED, size))
    return pa.RunEndEncodedArray.from_arrays(pa.array(range(1, size + 1), pa.int32()), values)


@st.composite
def unions(draw, size):
    children = [draw(plain([kind], size)) for kind in (pa.int64(), pa.string(), pa.bool_())]
    which = draw(st.lists(st.integers(0, 2), min_size=size, max_size=size))
    return pa.UnionArray.from_sparse(pa.array(which, pa.int8()), children)


def _extended(size):
    storage = plain([pa.int8()], size)
    return storage.map(lambda values: pa.ExtensionArray.from_storage(pa.bool8(), values))


@st.composite
def tables(draw):
    size = draw(st.integers(0, 8))
    some = plain(size=size) | dictionaries(size) | runs(size) | unions(size) | _extended(size)
    columns = draw(st.lists(some, min_size=1, max_size=3))
    names = draw(st.lists(st.sampled_from("xyz"), min_size=len(columns), max_size=len(columns)))
    whole = pa.Table.from_arrays(columns, names)
    cuts = sorted(draw(st.lists(st.integers(0, size), max_size=3)))
    starts, ends = [0, *cuts], [*cuts, size]
    pieces = [whole.slice(a, b - a) for a, b in zip(starts, ends, strict=True)]
    return pa.concat_tables(pieces).slice(draw(st.integers(0, 2)))


@st.composite
def column_tests(draw):
    tests = {
        **dict.fromkeys(("$gt", "$gte", "$lt", "$lte"), SCALARS),
        **dict.fromkeys(("$eq", "$ne"), SCALARS | st.none()),
        **dict.fromkeys(("$in", "$nin"), st.lists(SCALARS | st.none() | st.just([1]), max_size=4)),
        "$exists": st.booleans(),
        "$contains": TEXT | UNPAIRED,
    }
    names = draw(st.lists(st.sampled_from(list(tests)), max_size=2))
    return {name: draw(tests[name]) for name in names}


COLUMN = st.dictionaries(
    st.sampled_from("xyzm"), SCALARS | st.none() | column_tests(), min_size=1, max_size=2
)
FILTERS = st.recursive(
    COLUMN,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$not": inner}),
        st.fixed_dictionaries({"$and": st.lists(inner, min_size=1, max_size=2)}),
        st.fixed_dictionaries({"$or": st.lists(inner, min_size=1, max_size=2)}),
    ),
    max_leaves=3,
)


def assert_law(tree, rows):
    mask = row_mask(check(tree), rows)
    assert mask.dtype == np.bool_
    assert mask.tolist() == [accepts(tree, row) for row in rows.to_pylist()]


@settings(max_examples=600, deadline=None)
@given(FILTERS, tables())
def test_columns_and_rows_agree(tree, rows):
    assert_law(tree, rows)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_numbers_compare_as_in_python(data):
    numeric = [kind for kind in VALUES if pa.types.is_integer(kind) or pa.types.is_floating(kind)]
    rows = pa.table({"x": data.draw(plain(numeric, size=6))})
    near = NUMBERS | st.sampled_from(rows["x"].to_pylist()).filter(lambda value: value is not None)
    operand = data.draw(near)
    for operator in ("$eq", "$ne", "$gt", "$gte", "$lt", "$lte"):
        assert_law({"x": {operator: operand}}, rows)
    assert_law({"x": {"$in": [operand, data.draw(near)]}}, rows)


@pytest.mark.parametrize(
    ("values", "kind", "wanted", "passing"),
    [
        ([2**53, 2**53 + 1], "int64", {"$gt": 2.0**53}, [1]),
        ([2**53, 2**53 + 1], "int64", 2**53 + 1, [1]),
        ([2.0**53, 2.0**53 + 2], "float64", {"$gte": 2**53 + 1}, [1]),
        ([2.0**53, None], "float64", 2**53 + 1, []),
        ([0, 1], "int8", {"$lt": 0.5}, [0]),
        ([-1, 0, 127], "int8", {"$gte": -1e300}, [0, 1, 2]),
        ([0, 2**64 - 1], "uint64", {"$lt": float("inf")}, [0, 1]),
        ([0, 2**64 - 1], "uint64", {"$gt": -1}, [0, 1]),
        ([0, 2**64 - 1], "uint64", {"$in": [2**64 - 1, 2.0**64]}, [1]),
        ([1e308, float("inf")], "float64", {"$gt": 10**400}, [1]),
        ([1.0, -float("inf")], "float64", {"$lt": -(10**400)}, [1]),
        ([0.1, 0.5], "float32", {"$in": [0.1, 0.5]}, [1]),
        ([0.1], "float32", {"$gt": 0.1}, [0]),
        ([65504.0, float("inf")], "float16", {"$lt": 65520}, [0]),
        ([0.0, -0.0], "float32", {"$in": [0]}, [0, 1]),
        ([-0.0, 0.0], "float64", 0, [0, 1]),
        ([float("nan"), 1.0, None], "float64", {"$exists": True}, [0, 1]),
        ([float("nan"), 1.0, None], "float64", {"$ne": 1}, [0, 2]),
        ([float("nan"), 1.0, None], "float64", {"$in": [float("nan")]}, []),
        ([float("nan"), 1.0, None], "float64", {"$nin": [None]}, [0, 1]),
        ([0, 1, None], "int64", {"$gt": False}, []),
        ([0, 1, None], "int64", {"$in": [True, None]}, [2]),
        ([False, True, None], "bool", {"$gt": False}, [1]),
        ([False, True, None], "bool", {"$in": [1, False]}, [0]),
        ([False, True, None], "bool", {"$nin": []}, [0, 1, 2]),
        (["", "a", None], "string", {"$contains": ""}, [0, 1]),
        (["a.b", "aab", "a\\b"], "string", {"$contains": "a."}, [0]),
        (["\0a", "a"], "large_string", {"$contains": "\0"}, [0]),
        (["\uffff", "é"], "string", {"$gt": "\udfff"}, [0]),
        (["\ue000", "a"], "string", {"$contains": "\ud800"}, []),
        (["\ue000", "a"], "string", {"$in": ["\ud800", "a", 1]}, [1]),
        ([b"a", None], "binary", "a", []),
        ([b"a", None], "binary", {"$ne": "a"}, [0, 1]),
        ([0, None], "timestamp[ns]", {"$lte": 0}, []),
        ([1, None], "timestamp[ns]", None, [1]),
        ([None, None], "null", {"$exists": False}, [0, 1]),
    ],
)
def test_hard_cases(values, kind, wanted, passing):
    rows = pa.table({"x": pa.array(values, pa.type_for_alias(kind))})
    assert np.flatnonzero(row_mask(check({"x": wanted}), rows)).tolist() == passing
    assert_law({"x": wanted}, rows)


def test_a_column_that_is_not_there_is_missing():
    rows = pa.table({"x": [1, 2]})
    assert not row_mask({"y": {"$gt": 0}}, rows).any()
    assert row_mask({"y": None, "\ud800": {"$ne": 1}}, rows).all()


def test_a_table_without_rows_or_columns():
    assert row_mask({"x": 1}, pa.table({"x": pa.chunked_array([], pa.int64())})).shape == (0,)
    assert row_mask({"x": None}, pa.table({"y": [1, 2]}).select([])).tolist() == [True, True]


def test_batches_share_a_dictionary_longer_than_they_are():
    words = pa.array([f"word{i}" for i in range(100)] + [None])
    indices = pa.array([*range(101), None], pa.uint8())
    whole = pa.table({"x": pa.DictionaryArray.from_arrays(indices, words)})
    rows = pa.concat_tables([whole.slice(0, 60), whole.slice(60, 42)])
    assert rows["x"].num_chunks == 2
    for wanted in ("word7", {"$contains": "9"}, {"$ne": "word7"}, None):
        assert_law({"x": wanted}, rows)


def test_the_table_of_a_file(tmp_path):
    table = pa.table({"x": range(1000), "y": pa.array(["a", "b"] * 500).dictionary_encode()})
    with pa.ipc.new_file(tmp_path / "rows.arrow", table.schema) as writer:
        for batch in table.to_batches(max_chunksize=300):
            writer.write_batch(batch)
    with pa.memory_map(str(tmp_path / "rows.arrow")) as source:
        rows = pa.ipc.open_file(source).read_all()
    assert_law({"x": {"$gte": 299, "$lt": 601}, "y": {"$in": ["b"]}}, rows)


def test_a_million_rows_are_not_walked_one_by_one():
    size, part = 1_000_000, 5_000
    draws = np.random.default_rng(0).integers(0, 1000, size)
    words = pa.array([f"word {i} of a caption" for i in range(1000)]).take(pa.array(draws))
    rows = pa.table({"width": draws, "caption": words})
    tree = {"width": {"$gte": 100, "$lt": 600}, "caption": {"$gt": "word 3"}}
    begin = perf_counter()
    mask = row_mask(tree, rows)
    by_column = perf_counter() - begin
    begin = perf_counter()
    expected = [accepts(tree, row) for row in rows.slice(0, part).to_pylist()]
    by_row = (perf_counter() - begin) * size / part
    assert mask[:part].tolist() == expected
    assert by_column < by_row / 20
    assert pc.sum(pa.array(mask)).as_py() > part
