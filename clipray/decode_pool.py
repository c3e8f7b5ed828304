"""Processes that make samples ready, where the threads of one interpreter cannot feed a GPU.

Threads share one interpreter with the encoder: on 16 CPUs beside an H200 they left it a
twentieth of the GPU. Pixels come back in shared memory (/dev/shm).
"""

import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import parent_process
from threading import Thread
from typing import Self

import numpy as np
import torch
from torch import Tensor

from clipray import forks
from clipray.errors import UnavailableError
from clipray.pixels import Pixels
from clipray.prepare import PartSettings, Prepared, ahead, prepare_one
from clipray.samples import Entry

CHUNK = 32  # samples of one task; with 16 this process spends half as much again on one
ELSEWHERE = np.empty(0, np.uint8)  # stands for pixels that come in the tensor


@dataclass(frozen=True, slots=True)
class _Work:
    """Samples made ready: all that a process has to know."""

    settings: PartSettings
    decode: Callable[[bytes], Pixels]

    def __call__(self, entries: Sequence[Entry]) -> tuple[list[Prepared], Tensor | None]:
        """The samples without their pixels, and those of all that have some, in one tensor."""
        made = [prepare_one(entry, self.settings, self.decode) for entry in entries]
        pixels = [sample.pixels for sample in made if sample.pixels is not None]
        told = [replace(s, pixels=None if s.pixels is None else ELSEWHERE) for s in made]
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
        try:
            for told, pixels in ahead(self._pool, work, _chunks(entries), self._window):
                yield from _together(told, pixels)
        except BrokenProcessPool as error:
            raise UnavailableError(
                "a decode process ended; was it out of memory, or /dev/shm full? Lower "
                "--decode-processes or --batch-size, and run the job again: it goes on"
            ) from error


def _chunks(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    left = iter(entries)
    while chunk := list(islice(left, CHUNK)):
        yield chunk


def _together(told: list[Prepared], pixels: Tensor | None) -> Iterator[Prepared]:
    rows = iter(() if pixels is None else pixels.numpy())
    for sample in told:
        yield sample if sample.pixels is None else replace(sample, pixels=next(rows))


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
