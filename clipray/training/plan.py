"""The order of an epoch, which follows from (seed, epoch) and the sizes of the shards alone.

An epoch is a list of passes over shards. They are put in a random order and cut into windows, and
only the samples of one window are mixed. So what is read at one time lies in few shards, any step
can be reached without what lies before it, and nothing depends on the number of workers. What a
sample is, and who takes which part of a batch, is not known here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clipray.errors import ConfigError

_ORDER, _MIX, _DRAW = 1, 2, 3  # what a generator is for, so that no two are the same


@dataclass(frozen=True)
class Plan:
    """Cuts epochs into global batches.

    Attributes:
        counts: how many samples each shard has; may be 0.
        batch_size: global batch; the rest of an epoch that does not fill one is dropped, others
            each time.
        seed: of the order, 0 or more.
        weights: one a shard, how often an epoch sees its samples: 1 where not given, 2.5 is two
            passes and a random half.
        window: passes over shards whose samples are mixed.

    Raises:
        ConfigError: an epoch has no step.
    """

    counts: Sequence[int]
    batch_size: int
    seed: int
    weights: Sequence[float] | None = field(default=None, kw_only=True)
    window: int = field(default=32, kw_only=True)

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigError(
                f"loader.batch_size: {self.samples} samples with captions do not fill one batch "
                f"of {self.batch_size}; lower it"
            )

    @property
    def samples(self) -> int:
        """How many samples an epoch would see if none were dropped."""
        return int(self._passes[:, 1].sum())

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return self.samples // self.batch_size

    @property
    def dropped(self) -> int:
        """Samples that an epoch leaves out; others each time."""
        return self.samples - self.steps * self.batch_size

    def check_world(self, world: int, accumulate: int = 1) -> None:
        """Refuse a batch that has no equal slices.

        Raises:
            ConfigError: for this number of workers and of micro-batches a step.
        """
        if self.batch_size % (world * accumulate):
            parts = f" in {accumulate} micro-batches each" if accumulate > 1 else ""
            raise ConfigError(
                f"loader.batch_size: {self.batch_size} cannot be split evenly on {world} workers"
                f"{parts}; expected a multiple of {world * accumulate}"
            )

    def batches(self, epoch: int, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """The global batches of an epoch from step `start` on.

        Yields:
            (batch_size, 2) int64: shard and number of each sample within it.
        """
        waiting = np.empty((0, 2), np.int64)
        for samples in self._windows(epoch, start * self.batch_size):
            waiting = np.concatenate([waiting, samples])
            full = len(waiting) - len(waiting) % self.batch_size
            yield from waiting[:full].reshape(-1, self.batch_size, 2)
            waiting = waiting[full:]

    def _windows(self, epoch: int, skip: int) -> Iterator[NDArray[np.int64]]:
        """The samples of each window, mixed, without the first `skip` of the epoch."""
        passes = self._rng(_ORDER, epoch).permutation(self._passes)
        for first in range(0, len(passes), self.window):
            window = passes[first : first + self.window]
            size = int(window[:, 1].sum())
            if skip < size:
                samples = np.concatenate([self._pass(epoch, *row) for row in window.tolist()])
                yield self._rng(_MIX, epoch, first).permutation(samples)[skip:]
            skip = max(0, skip - size)

    def _pass(self, epoch: int, shard: int, size: int) -> NDArray[np.int64]:
        numbers = np.arange(self.counts[shard])
        if size < len(numbers):
            numbers = self._rng(_DRAW, epoch, shard).permutation(numbers)[:size]
        return np.stack([np.full(size, shard), numbers], axis=1)

    @cached_property
    def _passes(self) -> NDArray[np.int64]:
        """(passes, 2) int64: a shard and how many of its samples; none is empty."""
        counts = np.asarray(self.counts, np.int64)
        weights = np.asarray(np.ones(len(counts)) if self.weights is None else self.weights)
        shards, whole = np.arange(len(counts)), np.floor(weights)
        rest = np.rint((weights - whole) * counts).astype(np.int64)
        repeats = whole.astype(np.int64)
        sizes = np.concatenate([np.repeat(counts, repeats), rest])
        passes = np.stack([np.concatenate([np.repeat(shards, repeats), shards]), sizes], axis=1)
        return passes[sizes > 0]

    def _rng(self, *use: int) -> np.random.Generator:
        return np.random.default_rng((self.seed, *use))
