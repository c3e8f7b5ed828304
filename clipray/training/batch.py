"""One rank's share of a global batch: decoded, repaired, with captions drawn and tokenised.

A sample that cannot be used is replaced by the nearest one before it in the global batch, so that
the batch is the same on 1 or N ranks. When a batch is made, and by whom, is not known here.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipray.errors import InputError
from clipray.training.augment import sample_seeds
from clipray.training.decoder import Decoder, Refused, Sample

Tokenize = Callable[[Sequence[str]], Tensor]
Step = tuple[int, NDArray[np.int64]]  # its number over all epochs, and its global batch

_CAPTION_SALT = 0x5EED  # captions are drawn apart from the augmentation of the same sample


@dataclass(frozen=True, slots=True)
class Batch:
    """One rank's share of a global batch.

    Attributes:
        images: (batch, 3, height, width) uint8.
        tokens: (batch, context length) int64.
        seeds: (batch,) int64, what `augment` draws from.
        order: crc32 of the places of all samples of the global batch: the same on all ranks.
        replaced: how many samples of this share could not be used.
    """

    images: Tensor
    tokens: Tensor
    seeds: Tensor
    order: int
    replaced: int

    def pin_memory(self) -> Self:
        """In memory that a GPU copies from while it computes; torch's DataLoader calls it."""
        images, tokens = self.images.pin_memory(), self.tokens.pin_memory()
        return replace(self, images=images, tokens=tokens)


Made = tuple[Batch, tuple[Refused, ...]]  # with the samples that could not be used


class Batcher:
    """Makes the share of one rank; thread-safe.

    Args:
        decoder: of the samples.
        captions: columns of metadata → weights by which the text of a sample is drawn.
        tokenize: texts → (n, context length) int64.
        seed: of captions and augmentation.
        share: which part of every global batch.
        counts: samples of each shard.
    """

    def __init__(
        self,
        decoder: Decoder,
        captions: Mapping[str, float],
        tokenize: Tokenize,
        *,
        seed: int,
        share: slice,
        counts: Sequence[int],
    ) -> None:
        self._decoder, self._captions, self._tokenize = decoder, captions, tokenize
        self._seed, self._share = seed, share
        self._firsts = np.array([0, *accumulate(counts)], np.int64)

    def make(self, step: int, places: NDArray[np.int64], apply: Callable[..., Any] = map) -> Made:
        """Decode the share.

        Args:
            step: counted over all epochs, so that a sample seen twice in one is drawn anew.
            places: (global batch, 2) int64, from `Plan.batches`.
            apply: decodes many, as `map` does.

        Raises:
            InputError: no sample of the global batch can be used, or a shard is gone.
        """
        mine = range(len(places))[self._share]
        found = dict(zip(mine, apply(self._decode, places[self._share]), strict=True))
        chosen = [self._nearest(number, places, found) for number in mine]
        samples = [sample for _, sample in chosen]
        numbers = places[[number for number, _ in chosen]]
        ids = torch.from_numpy(self._firsts[numbers[:, 0]] + numbers[:, 1])
        batch = Batch(
            torch.from_numpy(np.stack([sample.pixels for sample in samples])),
            self._tokenize(self._draw_texts(samples, step, ids)),
            sample_seeds(self._seed, step, ids),
            zlib.crc32(places.tobytes()),
            sum(isinstance(found[number], Refused) for number in mine),
        )
        return batch, tuple(one for one in found.values() if isinstance(one, Refused))

    def _decode(self, place: NDArray[np.int64]) -> Sample | Refused:
        return self._decoder.decode(int(place[0]), int(place[1]))

    def _nearest(
        self, number: int, places: NDArray[np.int64], found: dict[int, Sample | Refused]
    ) -> tuple[int, Sample]:
        """The sample, or the nearest usable one before it, the last one being before the first."""
        for other in (*range(number, -1, -1), *range(len(places) - 1, number, -1)):
            if other not in found:
                found[other] = self._decode(places[other])
            sample = found[other]
            if isinstance(sample, Sample):
                return other, sample
        raise InputError(
            f"none of the {len(places)} samples of a batch can be used, {_first(found.values())}"
        )

    def _draw_texts(self, samples: Sequence[Sample], step: int, ids: Tensor) -> list[str]:
        draws = sample_seeds(self._seed ^ _CAPTION_SALT, step, ids).tolist()
        return [
            _pick(sample.texts, self._captions, (draw % 2**32) / 2**32)
            for sample, draw in zip(samples, draws, strict=True)
        ]


def _first(found: Iterable[Sample | Refused]) -> str:
    return next(f"such as {one.key}: {one.reason}" for one in found if isinstance(one, Refused))


def _pick(texts: Mapping[str, str], weights: Mapping[str, float], draw: float) -> str:
    total = sum(weights[name] for name in texts)
    for name, text in texts.items():
        draw -= weights[name] / total
        if draw < 0:
            return text
    return next(iter(texts.values()))
