"""Answering the queries of a mode from its index, in the shape that PaddleClas prints."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from clipray import images
from clipray.config import Config
from clipray.dataset import Found
from clipray.encoder import Encoder
from clipray.errors import ImageError, InputError
from clipray.index import Index
from clipray.matches import Match
from clipray.paddle.stopwatch import Stopwatch
from clipray.pixels import Pixels
from clipray.report import DONE, DONE_WITH_REJECTS, Report
from clipray.samples import Entry
from clipray.shards import Shard

ItemT = TypeVar("ItemT")
Vectors = NDArray[np.float32]

PLACE = ("path", "source_path")

log = logging.getLogger(__name__)


class Answer(Config):
    """What was found for one query, best first.

    Attributes:
        query: the line of the image, or the text.
        found: paths of images, or texts.
        error: why the query could not be answered.
    """

    query: str
    found: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    error: str | None = None


class AnswersReport(Report):
    """The answers in the order of the queries."""

    answers: tuple[Answer, ...]

    @property
    def exit_code(self) -> int:
        """0 when every query was answered, else 3."""
        return DONE_WITH_REJECTS if any(answer.error for answer in self.answers) else DONE

    def summary(self) -> str:
        """One line a query: a JSON list of what was found, empty where nothing was."""
        return "\n".join(json.dumps(each.found, ensure_ascii=False) for each in self.answers)


@dataclass(frozen=True)
class Asking:
    """How queries are answered.

    Attributes:
        k: at most so many results.
        threshold: smallest cosine of a result.
        batch_size: queries that are encoded and looked up at once.
    """

    index: Index
    encoder: Encoder
    k: int
    threshold: float
    batch_size: int
    watch: Stopwatch

    def texts(self, lines: Sequence[str]) -> AnswersReport:
        """Look for texts."""
        return self._report(answer for batch in self._batches(lines) for answer in self._say(batch))

    def images(self, found: Found) -> AnswersReport:
        """Look for images.

        Raises:
            InputError: none of them can be read.
        """
        report = self._report(answer for shard in found.shards for answer in self._shard(shard))
        failed = [answer for answer in report.answers if answer.error]
        if len(failed) == len(report.answers):
            raise InputError("; ".join(f"{each.query}: {each.error}" for each in failed[:5]))
        for answer in failed:
            log.warning("%s: %s", answer.query, answer.error)
        return report

    def _shard(self, shard: Shard) -> Iterator[Answer]:
        """What the images of a shard find; a copy of a remote one stays until all are read."""
        with shard.at_hand() as here:
            listing = here.list()
            if listing.damage:
                log.warning("%s: %s", shard.path, listing.damage)
            for batch in self._batches(listing.entries):
                yield from self._show(batch)

    def _report(self, answers: Iterable[Answer]) -> AnswersReport:
        return AnswersReport(answers=tuple(answers))

    def _batches(self, items: Iterable[ItemT]) -> Iterator[list[ItemT]]:
        rest = iter(items)
        while batch := list(islice(rest, self.batch_size)):
            yield batch

    def _say(self, lines: Sequence[str]) -> list[Answer]:
        with self.watch.stage("encode"):
            vectors = self.encoder.encode_texts(lines)
        return self._look_up(lines, vectors)

    def _show(self, entries: Sequence[Entry]) -> list[Answer]:
        with self.watch.stage("preprocess"):
            read = [self._read(entry) for entry in entries]
        pixels = [each for each in read if not isinstance(each, str)]
        lines = [e.key for e, each in zip(entries, read, strict=True) if not isinstance(each, str)]
        answers: Iterator[Answer] = iter(())
        if pixels:
            with self.watch.stage("encode"):
                vectors = self.encoder.encode_images(pixels)
            answers = iter(self._look_up(lines, vectors))
        return [
            Answer(query=entry.key, error=each) if isinstance(each, str) else next(answers)
            for entry, each in zip(entries, read, strict=True)
        ]

    def _read(self, entry: Entry) -> Pixels | str:
        """The pixels of a query, or why there are none."""
        if entry.image is None:
            return "no image"
        try:
            return self.encoder.pixels(entry.read_image())
        except (ImageError, OSError) as error:
            return str(error)

    def _look_up(self, lines: Sequence[str], vectors: Vectors) -> list[Answer]:
        with self.watch.stage("search"):
            columns = [name for name in PLACE if name in self.index.columns]
            results = self.index.search(
                vectors, self.k, self.threshold, columns=(*columns, "caption")
            )
        show = place_of if self.index.manifest.modality == "image" else text_of
        return [
            Answer(
                query=line,
                found=tuple(map(show, matches)),
                scores=tuple(match.score for match in matches),
            )
            for line, matches in zip(lines, results, strict=True)
        ]


def place_of(match: Match) -> str:
    """A path that opens: as it was given where it leads there from here, else the absolute one.

    An image inside a tar or a parquet has none; its key is shown.
    """
    given = str(match.columns.get("path") or match.key)
    source = match.columns.get("source_path")
    if not source or not images.is_picture(source) or str(Path(given).resolve()) == source:
        return given
    return str(source)


def text_of(match: Match) -> str:
    """The text of a row."""
    return str(match.columns.get("caption") or match.key)
