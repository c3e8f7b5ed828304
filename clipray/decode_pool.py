"""Processes that make samples ready, where the threads of one interpreter cannot feed a GPU.

Threads share one interpreter with the encoder: on 16 CPUs beside an H200 they left it a
twentieth of the GPU. Pixels come back in shared memory (/dev/shm).
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice, tee
from multiprocessing import parent_process
from threading import Thread
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from clipray import forks
from clipray.errors import UnavailableError
from clipray.pixels import Pixels
from clipray.prepare import PartSettings, Prepared, ahead, prepare_one
from clipray.samples import Entry, Listing
from clipray.shards import Shard

CHUNK = 32  # samples of one task; with 16 this process spends half as much again on one

# Of a sample: columns, rejection, whether it is selected, seconds, and whether it has pixels. The
# entry stays here, and plain values cost a fraction of what objects do on their way.
Told = tuple[dict[str, Any], str | None, bool, float, bool]


@dataclass(frozen=True, slots=True)
class _Work:
    """Samples made ready: all that a process has to know."""

    settings: PartSettings
    decode: Callable[[bytes], Pixels]

    def __call__(self, entries: Sequence[Entry]) -> tuple[list[Told], Tensor | None]:
        """What became of the samples, and the pixels of all that have some, in one tensor."""
        made = [prepare_one(entry, self.settings, self.decode) for entry in entries]
        pixels = [sample.pixels for sample in made if sample.pixels is not None]
        told = [(s.columns, s.rejection, s.selected, s.seconds, s.pixels is not None) for s in made]
        return told, torch.from_numpy(np.stack(pixels)) if pixels else None


class DecodePool:
    """Does what `prepare` does, for several shards at once; thread-safe.

    The processes begin at once, so that they are ready when a model is.

    Args:
        settings: what is asked of a sample, and how many processes there are.
    """

    def __init__(self, settings: PartSettings) -> None:
        self._settings = settings
        # So many chunks that each process has one in hand and one before it.
        self._window = max(2 * settings.decode_processes, 2 * settings.batch_size // CHUNK)
        self._pool = ProcessPoolExecutor(
            settings.decode_processes, forks.server(__name__), initializer=_begin
        )
        self._pool.submit(int)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def list(self, shard: Shard) -> Listing:
        """Find the samples of a shard; takes an interpreter 25 µs each, and here only 3.

        Raises:
            UnavailableError: a process ended.
        """
        with _telling_of_an_end():
            return self._pool.submit(shard.list).result()

    def prepare(
        self, entries: Iterable[Entry], decode: Callable[[bytes], Pixels]
    ) -> Iterator[Prepared]:
        """Make samples ready, in their order.

        Args:
            entries: samples by name.
            decode: image file → pixels; pickles, raises `ImageError`.

        Raises:
            UnavailableError: a process ended.
        """
        work = _Work(self._settings, decode)
        with _telling_of_an_end():
            chunks, sent = tee(_chunks(entries))
            made = ahead(self._pool, work, sent, self._window)
            for chunk, (told, pixels) in zip(chunks, made, strict=True):
                yield from _together(chunk, told, pixels)


@contextmanager
def _telling_of_an_end() -> Iterator[None]:
    try:
        yield
    except BrokenProcessPool as error:
        raise UnavailableError(
            "a decode process ended; was it out of memory, or /dev/shm full? Lower "
            "--decode-processes or --batch-size, and run the job again: it goes on"
        ) from error


def _chunks(entries: Iterable[Entry]) -> Iterator[Sequence[Entry]]:
    left = iter(entries)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _together(
    chunk: Sequence[Entry], told: Sequence[Told], pixels: Tensor | None
) -> Iterator[Prepared]:
    rows = iter(() if pixels is None else pixels.numpy())
    for entry, (columns, rejection, selected, seconds, has_pixels) in zip(chunk, told, strict=True):
        row = next(rows) if has_pixels else None
        yield Prepared(entry, columns, row, rejection, selected, seconds)


def _begin() -> None:
    """In a new process: one thread, deaf to Ctrl-C, and an end when its parent has gone."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    if parent:
        parent.join()
        os._exit(1)
