"""Images in the rows of a parquet file, as img2dataset's `parquet` output holds them.

Row groups are read one at a time and the last few are kept, so that reading rows in their order
costs each group once. What the other columns mean is not known here.
"""

from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from clipray import images, uri
from clipray.uri import AnyPath, is_local

KEPT_GROUPS = 4

_IMAGE_NAMES = frozenset(suffix[1:] for suffix in images.SUFFIXES) | {"image"}


def image_column(path: AnyPath) -> str | None:
    """Name of the column of image files; None where there is none, as in a file of metadata.

    Raises:
        OSError: when it is no parquet file, or a damaged one.
    """
    return _image_column(_open(path).schema_arrow)


def read_rows(path: AnyPath) -> list[dict[str, Any]]:
    """All rows without their images.

    Raises:
        OSError: when the file is damaged.
    """
    file = _open(path)
    names = [name for name in file.schema_arrow.names if name != _image_column(file.schema_arrow)]
    try:
        rows: list[dict[str, Any]] = file.read(names).to_pylist()
    except pa.ArrowException as error:
        raise OSError(None, f"damaged parquet: {error}") from None
    return rows


def read_image(path: AnyPath, row: int) -> bytes:
    """The image file in one row; empty where it has none.

    Raises:
        OSError: when the file is gone or damaged.
    """
    version = path.stat().st_mtime_ns if is_local(path) else 0
    starts = _group_starts(path, version)
    group = bisect_right(starts, row) - 1
    if not 0 <= row < starts[-1]:
        raise OSError(None, f"has {starts[-1]} rows, and row {row} was asked for")
    value: bytes | None = _group_images(path, version, group)[row - starts[group]].as_py()
    return value or b""


def _open(path: AnyPath) -> Any:
    try:
        return pq.ParquetFile(path) if is_local(path) else _open_remote(path)
    except pa.ArrowException as error:
        raise OSError(None, f"no readable parquet: {error}") from None


def _open_remote(path: UPath) -> Any:
    """Only what is needed is read, or all of it from a server that knows no ranges."""
    try:
        return pq.ParquetFile(path.open("rb"))
    except pa.ArrowException:
        raise
    except ValueError:
        return pq.ParquetFile(pa.BufferReader(uri.read(path, 0, path.stat().st_size)))


def _image_column(schema: pa.Schema) -> str | None:
    found = (
        field.name
        for field in schema
        if field.name.lower() in _IMAGE_NAMES
        and (pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type))
    )
    return next(found, None)


@lru_cache(maxsize=64)
def _group_starts(path: AnyPath, version: int) -> list[int]:
    """Number of the first row of every row group, and of all rows."""
    del version  # part of the cache's key: a replaced file is another one
    metadata = _open(path).metadata
    counts = (metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
    return [0, *accumulate(counts)]


@lru_cache(maxsize=KEPT_GROUPS)
def _group_images(path: AnyPath, version: int, group: int) -> pa.ChunkedArray:
    del version
    file = _open(path)
    name = _image_column(file.schema_arrow)
    if name is None:
        raise OSError(None, f"has no column of images ({', '.join(sorted(_IMAGE_NAMES))})")
    try:
        return file.read_row_group(group, [name]).column(0)
    except pa.ArrowException as error:
        raise OSError(None, f"damaged parquet: {error}") from None
