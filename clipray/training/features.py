"""Features of samples that are not trained on, by the model under training.

Samples are decoded in threads, ahead of the model. Which samples, and what becomes of their
features, is not known here.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor
from torch.nn.functional import normalize

from clipray import texts, uri
from clipray.clip import ClipModel
from clipray.pixels import Normaliser, Pixels, Reader
from clipray.prepare import AtHand, PartSettings, Prepared, prepare
from clipray.samples import Entry
from clipray.training.shelf import Shelf
from clipray.uri import AnyPath

Batches = Sequence[Sequence[Entry]]
TextOf = Callable[[Prepared], str]

COPIES = 2  # of remote shards, at once


@dataclass(frozen=True, slots=True)
class Features:
    """What the model makes of a batch of samples.

    Attributes:
        images: (n, dim) float32 unit vectors on the CPU.
        captions: the same of the texts, or none.
        texts: n captions or labels.
        loss: open_clip's contrastive loss of the batch, times n.
        rejected: key and reason of the samples that have no row here.
    """

    images: Tensor
    captions: Tensor
    texts: list[str]
    loss: float
    rejected: list[str]


def join(batches: Sequence[Features]) -> Features:
    """Put batches together, at least one."""
    return Features(
        torch.cat([batch.images for batch in batches]),
        torch.cat([batch.captions for batch in batches]),
        [text for batch in batches for text in batch.texts],
        math.fsum(batch.loss for batch in batches),
        [told for batch in batches for told in batch.rejected],
    )


def copies_at_hand() -> AtHand:
    """Have samples of a remote shard read from a copy of all of it; for whoever wants them all.

    One by one, each would cost two or three requests.
    """
    shelf = Shelf[AnyPath, Path](uri.fetched, COPIES)

    @contextmanager
    def at_hand(entry: Entry) -> Iterator[Entry]:
        if entry.shard is None or uri.is_local(entry.shard):
            yield entry
            return
        with shelf.take(entry.shard) as copy:
            yield entry.copied(copy)

    return at_hand


@dataclass(frozen=True, slots=True)
class _Batch:
    pixels: list[Pixels]
    texts: list[str]
    rejected: list[str]


class FeatureReader:
    """Batches of samples → features.

    Args:
        model: gives tokenizer, preprocessing and size; its module is not used.
        device: where the modules are that are given later.
        settings: of decoding.
        pixels: image file → pixels.
        at_hand: as for `prepare`.
    """

    def __init__(
        self,
        model: ClipModel,
        device: torch.device,
        settings: PartSettings,
        pixels: Reader,
        at_hand: AtHand = nullcontext,
    ) -> None:
        self._model, self._device = model, device
        self._settings, self._pixels, self._at_hand = settings, pixels, at_hand
        self._normalise = Normaliser(model.preprocess, device)
        self._loss = open_clip.ClipLoss()

    def pairs(self, module: Any, text_of: TextOf, batches: Batches) -> Iterator[Features]:
        """Features of images and captions; samples without a text are rejected."""
        for batch in self._read(batches, text_of, need_text=True):
            if not batch.texts:
                yield Features(self._none(), self._none(), [], 0.0, batch.rejected)
                continue
            images, captions = self._images(module, batch), self._captions(module, batch)
            with torch.autocast(self._device.type, enabled=False):
                loss = self._loss(images, captions, module.logit_scale.exp()).item()
            whole = loss * len(batch.texts)
            yield Features(images.cpu(), captions.cpu(), batch.texts, whole, batch.rejected)

    def images(self, module: Any, text_of: TextOf, batches: Batches) -> Iterator[Features]:
        """Features of images alone, with the text that stands for each of them, maybe empty."""
        for batch in self._read(batches, text_of, need_text=False):
            images = self._images(module, batch).cpu() if batch.texts else self._none()
            yield Features(images, self._none(), batch.texts, 0.0, batch.rejected)

    def _images(self, module: Any, batch: _Batch) -> Tensor:
        pixels = torch.from_numpy(np.stack(batch.pixels)).to(self._device)  # (n, 3, H, W) uint8
        return normalize(module.encode_image(self._normalise(pixels)).float(), dim=-1)

    def _captions(self, module: Any, batch: _Batch) -> Tensor:
        tokens = self._model.tokenize([texts.clean(text) for text in batch.texts])
        return normalize(module.encode_text(tokens.to(self._device)).float(), dim=-1)

    def _none(self) -> Tensor:
        return torch.empty(0, self._model.dim)

    def _read(self, batches: Batches, text_of: TextOf, *, need_text: bool) -> Iterator[_Batch]:
        entries = chain.from_iterable(batches)
        prepared = prepare(entries, self._settings, self._pixels, self._at_hand)
        for batch in batches:
            yield _sort(islice(prepared, len(batch)), text_of, need_text=need_text)


def _sort(samples: Iterator[Prepared], text_of: TextOf, *, need_text: bool) -> _Batch:
    batch = _Batch([], [], [])
    for sample in samples:
        text = "" if sample.rejection else text_of(sample)
        reason = sample.rejection or ("no text" if need_text and not text else None)
        if reason or sample.pixels is None:
            batch.rejected.append(f"{sample.entry.key}: {reason}")
            continue
        batch.pixels.append(sample.pixels)
        batch.texts.append(text)
    return batch
