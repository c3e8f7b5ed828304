"""Selecting samples by their metadata.

A filter is a JSON object in the style of MongoDB's queries: `{"width": {"$gte": 256}}`. Here
stands what a filter means; where the metadata comes from is not known.
"""

import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

MAX_DEPTH = 16

Row = Mapping[str, Any]


def accepts(tree: Mapping[str, Any], row: Row) -> bool:
    """Whether a row of metadata passes a filter.

    A value that is missing, null or of another kind than the operand fails every comparison, so it
    passes only `$ne`, `$nin`, `$not` and `{"$exists": false}`.

    Args:
        tree: a filter that `check` has let pass.
        row: column → value.
    """
    return all(_accepts_part(name, wanted, row) for name, wanted in tree.items())


def passes(value: Any, wanted: Any) -> bool:
    """Whether one value passes what a filter wants of its column."""
    tests = tests_of(wanted).items()
    return all(_OPERATORS[operator](value, operand) for operator, operand in tests)


def tests_of(wanted: Any) -> Mapping[str, Any]:
    """Operator → operand, for what a filter wants of one column."""
    return wanted if isinstance(wanted, dict) else {"$eq": wanted}


def kind_of(value: Any) -> type | None:
    """`bool`, `float` for every number, `str`; None for what compares with nothing."""
    if isinstance(value, bool):
        return bool
    if isinstance(value, int | float):
        return float if value == value else None  # noqa: PLR0124  NaN is like nothing
    return str if isinstance(value, str) else None


def columns_of(tree: Mapping[str, Any]) -> set[str]:
    """Names of the columns that a filter looks at."""
    found: set[str] = set()
    for name, wanted in tree.items():
        if name in ("$and", "$or"):
            found |= {column for part in wanted for column in columns_of(part)}
        else:
            found |= columns_of(wanted) if name == "$not" else {name}
    return found


def check(tree: Any, depth: int = 0) -> dict[str, Any]:
    """Refuse what is no filter.

    Raises:
        ValueError: saying what was found and what was expected.
    """
    if not isinstance(tree, dict) or not tree:
        raise ValueError('expected an object such as {"width": {"$gte": 256}}')
    if depth > MAX_DEPTH:
        raise ValueError(f"nested deeper than {MAX_DEPTH}")
    for name, wanted in tree.items():
        if name in _COMBINING:
            _check_combining(name, wanted, depth)
        elif str(name).startswith("$"):
            raise ValueError(_unknown(name, _COMBINING))
        else:
            _check_column(name, wanted)
    return tree


def _parse(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON ({error})") from None


FilterTree = Annotated[dict[str, Any], BeforeValidator(_parse), AfterValidator(check)]


def _accepts_part(name: str, wanted: Any, row: Row) -> bool:
    if name == "$and":
        return all(accepts(part, row) for part in wanted)
    if name == "$or":
        return any(accepts(part, row) for part in wanted)
    if name == "$not":
        return not accepts(wanted, row)
    return passes(row.get(name), wanted)


def _check_combining(name: str, wanted: Any, depth: int) -> None:
    if name == "$not":
        check(wanted, depth + 1)
    elif isinstance(wanted, list) and wanted:
        for part in wanted:
            check(part, depth + 1)
    else:
        raise ValueError(f"{name} takes a list of filters, found {wanted!r:.80}")


def _check_column(name: str, wanted: Any) -> None:
    for operator, operand in tests_of(wanted).items():
        expected = _OPERANDS.get(operator)
        if expected is None:
            raise ValueError(f"{name}: {_unknown(operator, _OPERATORS)}")
        if not isinstance(operand, expected):
            kinds = " or ".join(kind.__name__ for kind in expected)
            raise ValueError(f"{name}: {operator} takes {kinds}, found {operand!r:.80}")


def _unknown(operator: Any, known: Any) -> str:
    near = get_close_matches(str(operator), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
    return f"unknown operator {operator!r:.80}, {hint}"


def _compares(compare: Callable[[Any, Any], bool]) -> Callable[[Any, Any], bool]:
    def test(value: Any, operand: Any) -> bool:
        kind = kind_of(value)
        return kind is not None and kind is kind_of(operand) and compare(value, operand)

    return test


def _equals(value: Any, operand: Any) -> bool:
    if operand is None:
        return value is None
    kind = kind_of(value)
    return kind is not None and kind is kind_of(operand) and bool(value == operand)


def _is_in(value: Any, operands: list[Any]) -> bool:
    return any(_equals(value, operand) for operand in operands)


_COMBINING = ("$and", "$or", "$not")
_SCALARS = (str, int, float, bool)
_OPERANDS: dict[str, tuple[type, ...]] = {
    "$eq": (*_SCALARS, type(None)),
    "$ne": (*_SCALARS, type(None)),
    "$gt": _SCALARS,
    "$gte": _SCALARS,
    "$lt": _SCALARS,
    "$lte": _SCALARS,
    "$in": (list,),
    "$nin": (list,),
    "$exists": (bool,),
    "$contains": (str,),
}
_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": _equals,
    "$ne": lambda value, operand: not _equals(value, operand),
    "$gt": _compares(lambda value, operand: value > operand),
    "$gte": _compares(lambda value, operand: value >= operand),
    "$lt": _compares(lambda value, operand: value < operand),
    "$lte": _compares(lambda value, operand: value <= operand),
    "$in": _is_in,
    "$nin": lambda value, operand: not _is_in(value, operand),
    "$exists": lambda value, operand: (value is not None) is operand,
    "$contains": _compares(lambda value, operand: operand in value),
}
