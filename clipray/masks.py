"""Which rows of an Arrow table pass a filter.

What a filter means stands in `filters`; here its answer is computed column by column instead of
row by row. Only the columns that a filter names are read. Where the table lies is not known.
"""

import operator
import re
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipray import filters

Mask = NDArray[np.bool_]
Comparison = Callable[[pa.Array, pa.Scalar], pa.BooleanArray]


def row_mask(tree: Mapping[str, Any], rows: pa.Table) -> Mask:
    """(rows,) True where `filters.accepts(tree, row)`, computed column by column.

    Columns of numbers, booleans and strings, dictionary-encoded ones too, never become Python
    objects. Columns of unions, runs, views and extension types do.

    Args:
        tree: a filter that `filters.check` has let pass.
        rows: a table, usually a memory-mapped one.
    """
    mask = np.ones(len(rows), dtype=np.bool_)
    for name, wanted in tree.items():
        mask &= _part_mask(name, wanted, rows)
    return mask


def _part_mask(name: str, wanted: Any, rows: pa.Table) -> Mask:
    if name == "$and":
        return reduce(np.logical_and, (row_mask(part, rows) for part in wanted))
    if name == "$or":
        return reduce(np.logical_or, (row_mask(part, rows) for part in wanted))
    if name == "$not":
        return ~row_mask(wanted, rows)
    return _column_mask(_column(name, rows), filters.tests_of(wanted))


def _column(name: str, rows: pa.Table) -> pa.ChunkedArray:
    # As in a row of `to_pylist`, the last of several columns of one name counts.
    places = [place for place, known in enumerate(rows.column_names) if known == name]
    return rows.column(places[-1]) if places else pa.chunked_array([pa.nulls(len(rows))])


def _column_mask(column: pa.ChunkedArray, tests: Mapping[str, Any]) -> Mask:
    mask = np.empty(len(column), dtype=np.bool_)
    start = 0
    for values in column.chunks:
        mask[start : start + len(values)] = _chunk_mask(values, tests)
        start += len(values)
    return mask


def _chunk_mask(values: pa.Array, tests: Mapping[str, Any]) -> Mask:
    if _is_opaque(values.type):
        return np.array([filters.passes(value, tests) for value in values.to_pylist()], np.bool_)
    if pa.types.is_dictionary(values.type):
        return _dictionary_mask(values, tests)
    if pa.types.is_floating(values.type):
        values = values.cast(pa.float64())  # as Python sees them
    mask = np.ones(len(values), dtype=np.bool_)
    for name, operand in tests.items():
        mask &= _MASKS[name](values, operand)
    return mask


def _dictionary_mask(values: pa.DictionaryArray, tests: Mapping[str, Any]) -> Mask:
    known = values.dictionary
    if len(known) > len(values):  # batches share one dictionary, so each looks at its own part
        return _chunk_mask(known.take(values.indices), tests)
    passing = pa.array(_chunk_mask(known, tests)).take(values.indices)
    return _decided(passing, null=filters.passes(None, tests))


def _decided(answers: pa.BooleanArray, *, null: bool = False) -> Mask:
    decided: Mask = answers.fill_null(null).to_numpy(zero_copy_only=False)
    return decided


def _compares(
    holds: Callable[[Any, Any], bool], compare: Comparison, compare_otherwise: Comparison
) -> Callable[[pa.Array, Any], Mask]:
    """A comparison with the value nearest to the operand that the column's type can hold.

    No value of that type lies between the two, so the answer is as exact as Python's: for
    integers, `> 2.5` is `> 2`, and `< 2.5` is `<= 2`.

    Args:
        holds: of the nearest value and the operand; chooses between the other two.
        compare: of the column and the nearest value.
        compare_otherwise: the same, where `holds` says no.
    """

    def test(values: pa.Array, operand: Any) -> Mask:
        if not _is_like(operand, values.type):
            return np.zeros(len(values), dtype=np.bool_)
        nearest = _nearest(operand, values.type)
        chosen = compare if holds(nearest, operand) else compare_otherwise
        return _decided(chosen(values, pa.scalar(nearest, values.type)))

    return test


def _equals(values: pa.Array, operand: Any) -> Mask:
    return ~_exists(values) if operand is None else _equals_value(values, operand)


def _is_in(values: pa.Array, operands: list[Any]) -> Mask:
    like = [operand for operand in operands if _is_like(operand, values.type)]
    nearest = [_nearest(operand, values.type) for operand in like]
    found = [near for near, operand in zip(nearest, like, strict=True) if near == operand]
    if pa.types.is_floating(values.type) and 0.0 in found:
        found += [0.0, -0.0]  # `is_in` tells them apart
    mask = np.zeros(len(values), dtype=np.bool_)
    if found:
        mask |= _decided(pc.is_in(values, value_set=pa.array(found, values.type)))
    if any(operand is None for operand in operands):
        mask |= ~_exists(values)
    return mask


def _exists(values: pa.Array) -> Mask:
    return _decided(values.is_valid())


def _contains(values: pa.Array, part: pa.Scalar) -> pa.BooleanArray:
    return pc.match_substring(values, part.as_py())


def _nowhere(values: pa.Array, _: pa.Scalar) -> pa.BooleanArray:
    return pa.array(np.zeros(len(values), dtype=np.bool_))


def _is_opaque(kind: pa.DataType) -> bool:
    """Whether Arrow's functions do not know the type, so that only Python sees its values."""
    if pa.types.is_dictionary(kind):
        return _is_opaque(kind.value_type)
    return isinstance(kind, pa.BaseExtensionType) or any(test(kind) for test in _OPAQUE)


def _is_like(operand: Any, kind: pa.DataType) -> bool:
    found = filters.kind_of(operand)
    return found is not None and found is _kind_of(kind)


def _kind_of(kind: pa.DataType) -> type | None:
    if pa.types.is_boolean(kind):
        return bool
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return float
    return str if pa.types.is_string(kind) or pa.types.is_large_string(kind) else None


def _nearest(operand: Any, kind: pa.DataType) -> Any:
    if pa.types.is_integer(kind):
        limits = np.iinfo(kind.to_pandas_dtype())
        return int(min(max(operand, limits.min), limits.max))
    if pa.types.is_floating(kind):
        return _nearest_float(operand)
    return _UNPAIRED.sub("\ue000", operand) if isinstance(operand, str) else operand


def _nearest_float(operand: float) -> float:
    try:
        return float(operand)
    except OverflowError:
        return float("inf") if operand > 0 else float("-inf")


_UNPAIRED = re.compile("[\ud800-\udfff].*", re.DOTALL)  # JSON may hold it, UTF-8 may not
_OPAQUE = (
    pa.types.is_union,
    pa.types.is_run_end_encoded,
    pa.types.is_string_view,
    pa.types.is_binary_view,
)

_equals_value = _compares(operator.eq, pc.equal, _nowhere)
_MASKS: dict[str, Callable[[pa.Array, Any], Mask]] = {
    "$eq": _equals,
    "$ne": lambda values, operand: ~_equals(values, operand),
    "$gt": _compares(operator.gt, pc.greater_equal, pc.greater),
    "$gte": _compares(operator.ge, pc.greater_equal, pc.greater),
    "$lt": _compares(operator.lt, pc.less_equal, pc.less),
    "$lte": _compares(operator.le, pc.less_equal, pc.less),
    "$in": _is_in,
    "$nin": lambda values, operands: ~_is_in(values, operands),
    "$exists": lambda values, operand: _exists(values) == operand,
    "$contains": _compares(operator.eq, _contains, _nowhere),
}
