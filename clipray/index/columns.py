"""The columns of several tables that are to be one: their names and types.

Where they hold a column in types that do not meet, it becomes text.
"""

from collections.abc import Iterable, Sequence

import pyarrow as pa

from clipray.embeddings import KEY_COLUMN


def columns_of(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Columns of the rows of several parts, under the names that they have in an index."""
    return common_schema(map(_named, schemas))


def common_schema(schemas: Iterable[pa.Schema]) -> pa.Schema:
    """Columns of all; one whose types do not meet is text."""
    types: dict[str, list[pa.DataType]] = {}
    for field in (field for schema in schemas for field in schema):
        types.setdefault(field.name, []).append(field.type)
    return pa.schema([(name, _meet(name, found)) for name, found in types.items()])


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with the columns of `schema`; what is not there is null."""
    # Asked for by name one by one, the 20,000 columns that one sample can bring took minutes.
    given = dict(zip(table.column_names, table.columns, strict=True))
    columns = [
        _as(given[field.name], field) if field.name in given else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def _as(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type, safe=pa.types.is_string(field.type))  # text is checked
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a list, struct or bytes
        texts = [None if value is None else str(value) for value in column.to_pylist()]
        return pa.chunked_array([pa.array(texts, field.type)])


def _meet(name: str, types: Sequence[pa.DataType]) -> pa.DataType:
    kinds = set(types) - {pa.null()}
    if len(kinds) > 1 and any(kind == pa.uint64() or pa.types.is_decimal(kind) for kind in kinds):
        return pa.string()  # Arrow would have them wrap around, or fail
    try:
        schemas = [pa.schema([(name, kind)]) for kind in types]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def _named(schema: pa.Schema) -> pa.Schema:
    names = index_names(schema.names)
    renamed = [field.with_name(name) for field, name in zip(schema, names, strict=True)]
    own = next(field for field in renamed if field.name == "key")
    rest = [field for field in renamed if field.name != "key"]
    return pa.schema([pa.field("id", pa.int64()), own, *rest])


def index_names(names: Sequence[str]) -> list[str]:
    """What the columns of an embedding part are called in an index.

    `id` and `key` are ours; a column of the input with that name keeps its values beside them.
    """
    renamed: list[str] = []
    for name in names:
        free = f"input_{name}" if name in ("id", "key") else name
        while free != name and free in names:
            free = f"input_{free}"
        renamed.append("key" if name == KEY_COLUMN else free)
    return renamed
