"""What is written about the samples of a part: the metadata of its rows, and what was left out.

Columns are as the input has them, and where they cannot be of one kind they become text. Vectors
and file names are not known here.
"""

import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from clipray.embeddings import KEY_COLUMN
from clipray.prepare import Prepared
from clipray.samples import as_unicode


def category(reason: str) -> str:
    """The words of a reason that are the same for all samples left out for it."""
    return reason.partition(":")[0]


def rejected_lines(rejected: Sequence[tuple[str, str]]) -> bytes:
    """One JSON object a line for each (key, reason)."""
    lines = ({"key": key, "reason": category(why), "detail": why} for key, why in rejected)
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode(
        "utf-8", errors="replace"
    )


def metadata_table(rows: Sequence[Prepared]) -> pa.Table:
    """Key, caption, input columns, and where the image lies; one row a sample."""
    names = dict.fromkeys(name for row in rows for name in row.columns if name != "caption")
    own: dict[str, Any] = {
        KEY_COLUMN: pa.array([row.entry.key for row in rows], pa.string()),
        "caption": pa.array([row.columns["caption"] for row in rows], pa.string()),
    }
    given = {name: _column([row.columns.get(name) for row in rows]) for name in names}
    located = [row.entry.image for row in rows]
    return pa.table(
        {name: values for name, values in given.items() if name not in own}
        | own
        | {
            "source_path": pa.array(
                [at and as_unicode(str(at.path)) for at in located], pa.string()
            ),
            "source_offset": pa.array([at and at.offset for at in located], pa.int64()),
            "source_size": pa.array([at and at.size for at in located], pa.int64()),
        }
    )


def _column(values: list[Any]) -> pa.Array:
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError, UnicodeError):  # mixed types
        clean = [None if value is None else str(value) for value in values]
        return pa.array([c and c.encode("utf-8", "replace").decode() for c in clean], pa.string())
