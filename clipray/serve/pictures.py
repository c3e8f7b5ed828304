"""The pictures of rows, read from where they were when they were embedded."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from clipray import images, uri
from clipray.errors import InputError, NotFoundError
from clipray.samples import Location

Rows = Callable[[str, Sequence[int]], Awaitable[dict[int, dict[str, Any]]]]


class Pictures:
    """Reads pictures.

    Args:
        rows: index name and ids → all columns of those rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    async def read(self, index: str, row_id: int, size: int | None) -> tuple[bytes, str]:
        """The picture of a row and its media type; a JPEG thumbnail when `size` is given.

        Raises:
            NotFoundError: when there is no such row or it has no picture.
            InputError: its source is gone.
        """
        row = (await self._rows(index, [row_id])).get(row_id)
        if row is None or not row.get("source_path"):
            raise NotFoundError(f"id {row_id}: no row of index '{index}' with a picture has it")
        return await asyncio.to_thread(_read, row, size)


def _read(row: dict[str, Any], size: int | None) -> tuple[bytes, str]:
    try:
        place = Location(uri.at(row["source_path"]), row["source_offset"], row["source_size"])
        data = place.read(images.MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"picture of {row['key']}: its source is gone ({error})") from None
    if size is None:
        return data, images.media_type(data)
    return images.thumbnail(data, size), "image/jpeg"
