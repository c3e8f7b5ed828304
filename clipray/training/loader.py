"""Training batches in an order that (seed, epoch) alone decides.

A plan orders all samples of an epoch and cuts them into global batches; a rank takes its slice of
each. So every rank has the same number of steps, and the sequence of global batches is the same
on 1 or N ranks. Losses, devices and models are not known here.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from clipray.config import Config
from clipray.errors import ConfigError, ImageError, InputError
from clipray.pixels import Pixels
from clipray.samples import Entry
from clipray.training.augment import sample_seeds

log = logging.getLogger(__name__)

ReadPixels = Callable[[bytes], Pixels]
Tokenize = Callable[[Sequence[str]], Tensor]

_CAPTION_SALT = 0x5EED  # captions are drawn apart from the augmentation of the same sample


class LoaderConfig(Config):
    """What a batch is made of."""

    batch_size: int = Field(256, ge=1, description="global batch, over all workers")
    captions: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        {"caption": 1.0},
        min_length=1,
        description="metadata columns to draw the text from, with weights",
    )
    threads: int = Field(2, ge=1, description="threads of one worker that decode images")
    cache_mb: int = Field(
        512, ge=0, description="memory of one worker for decoded images; 0 decodes every time"
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """The order of samples, and which of them are this rank's.

    Attributes:
        samples: how many there are.
        batch_size: global batch; the rest of an epoch that does not fill one is dropped.
        seed: of the order.
        rank: of `world` workers, each takes an equal slice of every global batch.

    Raises:
        ConfigError: when an epoch has no step, or a batch has no equal slices.
    """

    samples: int
    batch_size: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if not self.steps:
            raise ConfigError(
                f"loader.batch_size: {self.samples} samples with captions do not fill one batch "
                f"of {self.batch_size}; lower it"
            )
        if self.batch_size % self.world:
            raise ConfigError(
                f"loader.batch_size: {self.batch_size} cannot be split evenly on {self.world} "
                "workers"
            )

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return self.samples // self.batch_size

    @property
    def dropped(self) -> int:
        """Samples that an epoch leaves out; others each time."""
        return self.samples - self.steps * self.batch_size

    def epoch(self, epoch: int) -> NDArray[np.int64]:
        """This rank's sample numbers, (steps, global batch / world) int64."""
        order = np.random.default_rng((self.seed, epoch)).permutation(self.samples)
        batches = order[: self.steps * self.batch_size].reshape(self.steps, self.batch_size)
        share = self.batch_size // self.world
        return batches[:, self.rank * share : (self.rank + 1) * share]


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: (batch, 3, height, width) uint8.
        tokens: (batch, context length) int64.
        seeds: (batch,) int64, what `augment` draws from.
    """

    images: Tensor
    tokens: Tensor
    seeds: Tensor


class Loader:
    """The batches of one rank, decoded in threads one batch ahead of the step."""

    def __init__(
        self,
        entries: Sequence[Entry],
        config: LoaderConfig,
        plan: Plan,
        *,
        pixels: ReadPixels,
        tokenize: Tokenize,
    ) -> None:
        self._entries, self._config, self._plan = entries, config, plan
        self._pixels, self._tokenize = pixels, tokenize
        self._images: dict[int, Pixels] = {}
        self._texts: dict[int, dict[str, str]] = {}
        self._room = config.cache_mb << 20
        self.replaced = 0

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """All batches of one epoch."""
        mine = self._plan.epoch(epoch)
        with ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(self._config.threads) as pool:
            following = ahead.submit(self._batch, pool, epoch, mine[0])
            for numbers in mine[1:]:
                ready = following.result()
                following = ahead.submit(self._batch, pool, epoch, numbers)
                yield ready
            yield following.result()

    def _batch(self, pool: ThreadPoolExecutor, epoch: int, numbers: NDArray[np.int64]) -> Batch:
        images = list(pool.map(self._image, numbers.tolist()))
        good = [place for place, image in enumerate(images) if image is not None]
        if not good:
            raise InputError(f"none of {len(images)} images of a batch can be decoded")
        # A bad image is replaced by its neighbour, so that every rank keeps its number of rows.
        chosen = [place if images[place] is not None else good[place % len(good)]
                  for place in range(len(images))]  # fmt: skip
        self.replaced += len(images) - len(good)
        numbers = numbers[chosen]
        stacked = np.stack([image for place in chosen if (image := images[place]) is not None])
        texts = self._draw_texts(epoch, numbers)
        return Batch(
            torch.from_numpy(stacked),
            self._tokenize(texts),
            sample_seeds(self._plan.seed, epoch, torch.from_numpy(numbers)),
        )

    def _image(self, number: int) -> Pixels | None:
        held = self._images.get(number)
        if held is not None:
            return held
        try:
            image = self._pixels(self._entries[number].read_image())
        except ImageError as error:
            log.warning("%s: left out, %s", self._entries[number].key, error)
            return None
        if self._room >= image.nbytes:
            self._room -= image.nbytes
            self._images[number] = image
        return image

    def _draw_texts(self, epoch: int, numbers: NDArray[np.int64]) -> list[str]:
        salted = self._plan.seed ^ _CAPTION_SALT
        draws = sample_seeds(salted, epoch, torch.from_numpy(numbers)).tolist()
        return [
            self._text(number, draw) for number, draw in zip(numbers.tolist(), draws, strict=True)
        ]

    def _text(self, number: int, draw: int) -> str:
        texts = self._texts.get(number)
        if texts is None:
            texts = _texts(self._entries[number], self._config.captions)
            if self._config.cache_mb:
                self._texts[number] = texts
        return _pick(texts, self._config.captions, (draw % 2**32) / 2**32)


def with_captions(entries: Sequence[Entry], captions: Mapping[str, float]) -> list[Entry]:
    """The entries that can be trained on: an image and at least one text."""
    return [e for e in entries if e.image and not e.duplicate and _texts(e, captions)]


def _texts(entry: Entry, captions: Mapping[str, float]) -> dict[str, str]:
    columns = entry.read_columns()
    return {name: str(columns[name]) for name in captions if columns.get(name)}


def _pick(texts: Mapping[str, str], weights: Mapping[str, float], draw: float) -> str:
    total = sum(weights[name] for name in texts)
    for name, text in texts.items():
        draw -= weights[name] / total
        if draw < 0:
            return text
    return next(iter(texts.values()))
