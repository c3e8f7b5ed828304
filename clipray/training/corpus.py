"""The samples that can be trained on, known from the lists of their shards.

A corpus is found once and sent to all who read from it: it holds shards and counts, and lists a
shard again when a sample of it is wanted. Images are not decoded here, and orders not known.
"""

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from tqdm import tqdm

from clipray import uri
from clipray.dataset import find_shards
from clipray.errors import ConfigError, InputError
from clipray.samples import Entry, Listing, as_unicode
from clipray.shards import Shard
from clipray.sources import find_sources
from clipray.training.shelf import Shelf

log = logging.getLogger(__name__)

HELD = 32  # shards of which the list stays in memory: about 5 MB for 10,000 samples
SURVEYORS = 8  # shards that are listed at once; each may be fetched whole to the disk


@dataclass(frozen=True, slots=True)
class Stock:
    """What a shard has for training.

    Attributes:
        origin: which input it is from, counted from 0.
        listed: how many samples it lists.
        usable: a bit a sample, packed as by numpy.
        count: how many bits are set.
    """

    shard: Shard
    origin: int
    listed: int
    usable: bytes
    count: int

    def pick(self, listing: Listing) -> list[Entry]:
        """The usable ones of its samples.

        Raises:
            InputError: the shard is not what it was when it was surveyed.
        """
        if listing.damage or len(listing.entries) != self.listed:
            now = listing.damage or f"lists {len(listing.entries)} samples"
            raise InputError(
                f"{self.shard.path}: {now}, but {self.listed} were listed when training began; "
                "put it back, or start anew without it"
            )
        bits = np.unpackbits(np.frombuffer(self.usable, np.uint8), count=self.listed)
        return [listing.entries[number] for number in np.flatnonzero(bits).tolist()]


class Corpus:
    """Usable samples by shard and number; pickles small, thread-safe.

    Args:
        stocks: the shards.
        inputs: how many inputs they are from.
        held: how many shards stay listed; of a remote one a local copy stays as well.
    """

    def __init__(self, stocks: Sequence[Stock], inputs: int, held: int = HELD) -> None:
        self._stocks, self._inputs, self._held = tuple(stocks), inputs, held
        # Not a method of its own: in a circle, copies would stay until the collector runs.
        self._shelf = Shelf(partial(_listed, self._stocks), held)

    @classmethod
    def survey(cls, inputs: Sequence[str], captions: Mapping[str, float]) -> Self:
        """List all shards; what cannot be used is counted and told.

        Args:
            inputs: as for `find_shards`.
            captions: metadata columns, of which a sample has a text in one. A text of spaces
                only counts as one here: no `.txt` is read.

        Raises:
            InputError: an input is missing, or nothing is usable.
        """
        found = find_shards(inputs)
        for path, reason in found.skipped.items():
            log.warning("%s: left out, %s", path, reason)
        stocks = _survey(found.shards, captions, _origins(inputs))
        listed, samples = (sum(s.listed for s in stocks), sum(s.count for s in stocks))
        if not samples:
            raise InputError(
                f"{', '.join(inputs)}: no image with a text in column {', '.join(captions)}"
            )
        if samples < listed:
            log.warning("%d of %d samples have no image or no text", listed - samples, listed)
        return cls(stocks, len(inputs))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._stocks, self._inputs, self._held)

    def require_here(self) -> None:
        """See that this machine has all shards that are files, where another surveyed them.

        Raises:
            InputError: naming the first that is missing.
        """
        given = (stock.shard.path for stock in self._stocks)
        paths = sorted({path for path in given if uri.is_local(path)})
        missing = [path for path in paths if not path.exists()]
        if missing:
            raise InputError(
                f"{missing[0]}: not there ({len(missing)} of {len(paths)} shards); every node "
                "reads --input at that path, of a shared folder or of its own disk, or from a URI"
            )

    def holding(self, shards: int) -> "Corpus":
        """The same corpus, of which so many shards stay listed."""
        return Corpus(self._stocks, self._inputs, shards)

    @property
    def counts(self) -> tuple[int, ...]:
        """Usable samples of each shard."""
        return tuple(stock.count for stock in self._stocks)

    @property
    def samples(self) -> int:
        """Usable samples of all shards."""
        return sum(self.counts)

    @cached_property
    def digest(self) -> str:
        """A sha256 that changes when a shard comes, goes or has more or fewer usable samples."""
        lines = [f"{stock.shard.name} {stock.count}" for stock in self._stocks]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def weights(self, given: Sequence[float]) -> tuple[float, ...]:
        """Of each shard, the weight of the input that it is from.

        Args:
            given: one an input; all are 1 where there are none.

        Raises:
            ConfigError: too few or too many.
        """
        if given and len(given) != self._inputs:
            raise ConfigError(
                f"loader.weights: {len(given)} for {self._inputs} inputs; expected one an input"
            )
        return tuple(given[stock.origin] if given else 1.0 for stock in self._stocks)

    @contextmanager
    def entry(self, shard: int, number: int) -> Iterator[Entry]:
        """A sample, which can be read within the block: then its copy may be removed.

        Raises:
            InputError: the shard cannot be read any more, or has changed.
        """
        with self._shelf.take(shard) as entries:
            yield entries[number]


def texts_of(entry: Entry, captions: Mapping[str, float]) -> dict[str, str]:
    """The texts of a sample that can be trained on, by column.

    Raises:
        OSError: when they cannot be read.
    """
    columns = entry.read_columns()
    return {name: str(columns[name]) for name in captions if columns.get(name)}


@contextmanager
def _listed(stocks: Sequence[Stock], shard: int) -> Iterator[list[Entry]]:
    stock = stocks[shard]
    with ExitStack() as stack:
        try:
            here = stack.enter_context(stock.shard.at_hand())
        except OSError as error:
            raise InputError(f"{stock.shard.path}: cannot be fetched ({error})") from error
        yield stock.pick(here.list())


def _survey(
    shards: Sequence[Shard], captions: Mapping[str, float], origins: Mapping[str, int]
) -> list[Stock]:
    with ThreadPoolExecutor(SURVEYORS) as pool:
        taken = pool.map(partial(_take_stock, captions, origins), shards)
        bar = tqdm(taken, total=len(shards), unit="shard", desc="survey", delay=2, leave=False)
        return [stock for stock in bar if stock]


def _take_stock(
    captions: Mapping[str, float], origins: Mapping[str, int], shard: Shard
) -> Stock | None:
    try:
        with shard.at_hand() as here:
            listing = here.list()
            bits = np.array([_is_usable(entry, captions) for entry in listing.entries], bool)
    except OSError as error:
        listing = Listing((), f"cannot be fetched ({error.strerror or error})")
    if listing.damage:
        log.warning("%s: left out, %s", shard.path, listing.damage)
        return None
    origin = _origin(shard.name, origins)
    return Stock(shard, origin, len(bits), np.packbits(bits).tobytes(), int(bits.sum()))


def _is_usable(entry: Entry, captions: Mapping[str, float]) -> bool:
    if not entry.image or entry.duplicate:
        return False
    if entry.text and "caption" in captions and (entry.text.size or len(captions) == 1):
        return bool(entry.text.size)
    try:
        return bool(texts_of(entry, captions))
    except OSError:
        return False


def _origins(inputs: Sequence[str]) -> dict[str, int]:
    """Names of sources → number of the input."""
    return {
        as_unicode(source.name): number
        for number, given in enumerate(inputs)
        for source in find_sources([given]).found
    }


def _origin(name: str, origins: Mapping[str, int]) -> int:
    while name and name not in origins:  # a shard's name begins with that of its source
        name = name.rpartition("/")[0]
    return origins[name]
