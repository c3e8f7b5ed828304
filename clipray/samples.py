"""One sample by name: where its bytes lie, and what they say.

A sample is read where it lies, in a tar, a file or a parquet, and nothing is extracted to the
disk. Pixels are not decoded here, and where samples are found is not known.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from clipray import images, parquet, uri
from clipray.uri import AnyPath

MAX_TEXT_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Location:
    """Where the bytes of one member lie.

    Attributes:
        path: the file, which may be remote.
        offset: of the first byte; in a parquet, the number of the row.
        size: in bytes; None in a parquet, where only reading tells.
        copy: a local copy of a remote file, while there is one.
    """

    path: AnyPath
    offset: int
    size: int | None
    copy: Path | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        # Pickled by itself a frozen class costs three times as much, and every sample has three.
        return type(self), (self.path, self.offset, self.size, self.copy)

    @property
    def is_inside(self) -> bool:
        """Whether the file holds other members as well: a tar begins with a header."""
        return self.size is None or self.offset > 0

    def read(self, limit: int) -> bytes:
        """At most `limit` bytes.

        Raises:
            OSError: when they cannot be read.
        """
        here = self.copy or self.path
        if self.size is None:
            return parquet.read_image(here, self.offset)[:limit]
        return uri.read(here, self.offset, min(self.size, limit))


@dataclass(frozen=True, slots=True)
class Entry:
    """A sample by name: its key `<source>/<key>` and where its members lie.

    Attributes:
        columns: metadata that was at hand when the shard was listed; None where `record` and
            `text` have to be read for it.
    """

    key: str
    image: Location | None = None
    text: Location | None = None
    record: Location | None = None
    duplicate: bool = False
    columns: Mapping[str, Any] | None = None

    def __reduce__(self) -> tuple[type[Self], tuple[Any, ...]]:
        places = self.image, self.text, self.record
        return type(self), (self.key, *places, self.duplicate, self.columns)

    @property
    def shard(self) -> AnyPath | None:
        """The file with many samples that this one lies in; None where its files are its own."""
        places = (place for place in (self.image, self.text, self.record) if place)
        return next((place.path for place in places if place.is_inside), None)

    def copied(self, copy: Path) -> Self:
        """The same, read from a local copy of its shard."""
        image, text, record = (
            place and replace(place, copy=copy) for place in (self.image, self.text, self.record)
        )
        return replace(self, image=image, text=text, record=record)

    def read_image(self) -> bytes:
        """The image file; longer ones are cut just past the limit, which `decode` then refuses."""
        return self.image.read(images.MAX_BYTES + 1) if self.image else b""

    def read_columns(self) -> dict[str, Any]:
        """Metadata of the sample, `caption` (stripped, may be None) among it."""
        columns = dict(_clean(self.columns or {}))
        if self.record:
            columns = _parse_record(self.record.read(MAX_TEXT_BYTES))
        caption = columns.get("caption")
        if self.text:
            caption = self.text.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")
        columns["caption"] = str(caption).strip() or None if caption is not None else None
        return columns


@dataclass(frozen=True, slots=True)
class Listing:
    """The samples of a shard, and why it is not whole, if it is not."""

    entries: tuple[Entry, ...]
    damage: str | None = None


def as_unicode(name: str) -> str:
    """A file name that any encoder takes; bytes of it that are no text become escapes."""
    return name.encode("utf-8", errors="backslashreplace").decode()


def _parse_record(data: bytes) -> dict[str, Any]:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return _clean(record) if isinstance(record, dict) else {}


def _clean(record: Mapping[str, Any]) -> dict[str, Any]:
    return {as_unicode(name): _flat(value) for name, value in record.items() if name != "key"}


def _flat(value: Any) -> Any:
    if isinstance(value, dict | list):
        value = json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str):  # JSON may hold half of an emoji, which no file can
        return value.encode("utf-8", errors="replace").decode()
    return value
