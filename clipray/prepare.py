"""Samples made ready for the encoder: read, selected and decoded in threads, ahead of it.

The threads run a bounded number of samples ahead, and the order is kept. Vectors and files are
not known here.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from clipray import filters
from clipray.errors import ImageError
from clipray.manifest import Modality
from clipray.pixels import Pixels
from clipray.samples import Entry

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

AtHand = Callable[[Entry], AbstractContextManager[Entry]]

DUPLICATE = "duplicate key"


@dataclass(frozen=True, slots=True)
class PartSettings:
    """How parts are made; the same for all of a folder."""

    modalities: tuple[Modality, ...]
    batch_size: int = 64
    decode_threads: int = 2
    decode_processes: int = 0
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A sample that can be encoded, or the reason why it cannot.

    Attributes:
        columns: metadata, `caption` among it.
        pixels: (3, height, width) uint8, where images are asked for.
        rejection: why the sample is left out, None where it is not.
        selected: whether the filter lets it pass.
        seconds: that a thread spent on it.
    """

    entry: Entry
    columns: dict[str, Any]
    pixels: Pixels | None = None
    rejection: str | None = None
    selected: bool = True
    seconds: float = 0.0


def prepare(
    entries: Iterable[Entry],
    settings: PartSettings,
    decode: Callable[[bytes], Pixels],
    at_hand: AtHand = nullcontext,
) -> Iterator[Prepared]:
    """Make samples ready, in their order.

    Args:
        entries: samples by name.
        settings: what is asked of a sample, and how many threads there are.
        decode: image file → pixels; thread-safe, raises `ImageError`.
        at_hand: gives a sample as it is read within the block; thread-safe, raises `OSError`.
    """

    def work(entry: Entry) -> Prepared:
        return prepare_one(entry, settings, decode, at_hand)

    with ThreadPoolExecutor(settings.decode_threads) as pool:
        yield from ahead(pool, work, entries, 2 * settings.batch_size)


def ahead(
    pool: Executor,
    work: Callable[[ItemT], ResultT],
    items: Iterable[ItemT],
    window: int,
) -> Iterator[ResultT]:
    """The results in the order of the items, of which a bounded number is in hand."""
    pending: deque[Future[ResultT]] = deque()
    for item in items:
        pending.append(pool.submit(work, item))
        if len(pending) >= window:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()


def prepare_one(
    entry: Entry,
    settings: PartSettings,
    decode: Callable[[bytes], Pixels],
    at_hand: AtHand = nullcontext,
) -> Prepared:
    """One sample, as `prepare` makes many."""
    began = time.perf_counter()
    prepared = _prepare(entry, settings, decode, at_hand)
    return replace(prepared, entry=entry, seconds=time.perf_counter() - began)


def _prepare(
    entry: Entry, settings: PartSettings, decode: Callable[[bytes], Pixels], at_hand: AtHand
) -> Prepared:
    if entry.duplicate:
        return Prepared(entry, {}, rejection=f"{DUPLICATE}: it comes again in its shard")
    try:
        with at_hand(entry) as here:
            return _read(here, settings, decode)
    except ImageError as error:
        return Prepared(entry, {}, rejection=str(error))
    except OSError as error:
        return Prepared(entry, {}, rejection=f"cannot be read: {error.strerror or error}")


def _read(entry: Entry, settings: PartSettings, decode: Callable[[bytes], Pixels]) -> Prepared:
    columns = entry.read_columns()
    if settings.filter and not filters.accepts(settings.filter, columns):
        return Prepared(entry, columns, selected=False)
    if "text" in settings.modalities and not columns["caption"]:
        return Prepared(entry, columns, rejection="no caption")
    if "image" not in settings.modalities:
        return Prepared(entry, columns)
    if entry.image is None:
        return Prepared(entry, columns, rejection="no image")
    return Prepared(entry, columns, decode(entry.read_image()))
