"""One sample of a corpus, decoded: pixels and texts, kept in memory while there is room.

Which samples are wanted, and what becomes of one that cannot be used, is not known here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import Any

from clipray.errors import ImageError
from clipray.pixels import Pixels
from clipray.samples import Entry
from clipray.training.corpus import Corpus, texts_of

ReadPixels = Callable[[bytes], Pixels]


@dataclass(frozen=True, slots=True)
class Sample:
    """What is trained on.

    Attributes:
        pixels: (3, height, width) uint8.
        texts: by column of metadata; at least one.
    """

    pixels: Pixels
    texts: Mapping[str, str]

    @property
    def nbytes(self) -> int:
        """Memory that it takes, about."""
        return self.pixels.nbytes + sum(map(len, self.texts.values()))


@dataclass(frozen=True, slots=True)
class Refused:
    """A sample that cannot be used, and why."""

    key: str
    reason: str


class Decoder:
    """Reads and decodes; thread-safe, and pickles without what it keeps.

    Args:
        corpus: the samples.
        captions: columns of metadata that hold texts.
        read: an image file → (3, height, width) uint8.
        room: bytes of decoded samples that are kept; the first ones stay.
    """

    def __init__(
        self, corpus: Corpus, captions: Mapping[str, float], read: ReadPixels, room: int
    ) -> None:
        self._corpus, self._captions, self._read = corpus, captions, read
        self._kept: dict[tuple[int, int], Sample] = {}
        self._room, self._lock = room, Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return Decoder, (self._corpus, self._captions, self._read, 0)

    def decode(self, shard: int, number: int) -> Sample | Refused:
        """A sample by its place in the corpus.

        Raises:
            InputError: its whole shard is gone or has changed.
        """
        kept = self._kept.get((shard, number))
        if kept:
            return kept
        with self._corpus.entry(shard, number) as entry:
            sample = self._decode(entry)
        if isinstance(sample, Sample):
            self._keep((shard, number), sample)
        return sample

    def _decode(self, entry: Entry) -> Sample | Refused:
        try:
            texts = texts_of(entry, self._captions)
            if not texts:
                return Refused(entry.key, f"no text in column {', '.join(self._captions)}")
            return Sample(self._read(entry.read_image()), texts)
        except ImageError as error:
            return Refused(entry.key, str(error))
        except OSError as error:
            return Refused(entry.key, f"cannot be read ({error.strerror or error})")

    def _keep(self, place: tuple[int, int], sample: Sample) -> None:
        with self._lock:
            if self._room >= sample.nbytes and place not in self._kept:
                self._room -= sample.nbytes
                self._kept[place] = sample
