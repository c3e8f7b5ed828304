"""The model under training, measured on data that it is not trained on.

Samples are cut into batches in the order of their shards, and the batches are shared by the
ranks. So the figures are the same on 1 or N ranks, to the last bit where a rank has the same
device and number of threads. Who asks for them, and where they go, is not known here.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from clipray.clip import ClipModel
from clipray.config import Config
from clipray.dataset import find_shards
from clipray.errors import InputError
from clipray.pixels import Reader
from clipray.prepare import PartSettings, Prepared
from clipray.samples import Entry
from clipray.sources import absolute
from clipray.training.features import Batches, FeatureReader, Features, copies_at_hand, join
from clipray.training.peers import Peers
from clipray.training.retrieval import ranks, retrieval_metrics
from clipray.training.shares import from_first, share_out
from clipray.training.zero_shot import (
    ZeroShotConfig,
    build_classifier,
    class_numbers,
    find_classes,
    label_of,
    read_classes,
    read_templates,
    tell_unknown,
    zero_shot_metrics,
)

log = logging.getLogger(__name__)

Work = Callable[[Batches], Iterator[Features]]


class EvaluationConfig(Config):
    """Measure the model on data that it is not trained on."""

    input: tuple[str, ...] = Field(
        (), description="held-out pairs: folder of img2dataset shards or of images"
    )
    caption: str = Field("caption", description="metadata column with the text of a pair")
    limit: int | None = Field(
        None, ge=1, description="most samples evaluated, spread evenly; all where not given"
    )
    batch_size: int = Field(64, ge=1, description="samples encoded at once by a worker")
    every_epochs: int = Field(1, ge=1, description="evaluate after so many epochs, and at the end")
    zero_shot: ZeroShotConfig | None = None

    def absolute(self) -> Self:
        """The same for a process with another working directory."""
        inputs = tuple(map(absolute, self.input))
        zero_shot = self.zero_shot and self.zero_shot.absolute()
        return self.model_copy(update={"input": inputs, "zero_shot": zero_shot})

    def due(self, epoch: int, epochs: int) -> bool:
        """Whether to evaluate after epoch `epoch`, counted from 0, of `epochs`."""
        asked = bool(self.input or self.zero_shot)
        return asked and ((epoch + 1) % self.every_epochs == 0 or epoch + 1 == epochs)

    def check(self) -> None:
        """Look for the inputs and read the lists, before workers start.

        Raises:
            InputError: what is missing, or wrong in a list.
        """
        if self.input:
            find_shards(self.input)
        if self.zero_shot:
            find_shards(self.zero_shot.input)
            read_templates(self.zero_shot.templates)
            if self.zero_shot.classes:
                read_classes(self.zero_shot.classes)


class Evaluation:
    """The evaluations of one rank; nothing is read before the first run.

    Args:
        config: what to measure.
        model: gives tokenizer, preprocessing and size; its module is not used.
        peers: the ranks of the run.
        pixels: image file → pixels.
        threads: that decode images.
        autocast: type that the model computes in, None for that of its weights.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        model: ClipModel,
        peers: Peers,
        *,
        pixels: Reader,
        threads: int = 2,
        autocast: torch.dtype | None = None,
    ) -> None:
        self._config, self._model, self._peers = config, model, peers
        self._autocast = autocast
        settings = PartSettings(("image",), config.batch_size, threads)
        # Of several ranks each would fetch all shards, for a share of the samples of each.
        whole = peers.world == 1 and config.limit is None
        at_hand = copies_at_hand() if whole else nullcontext
        self._reader = FeatureReader(model, peers.device, settings, pixels, at_hand)
        self._batches: dict[tuple[str, ...], Batches] = {}

    def run(self, module: nn.Module) -> dict[str, float]:
        """Measure a module; called by all ranks, which all get the metrics.

        Args:
            module: open_clip's, not DDP's, on the device of the peers; comes back in the mode
                that it was in.

        Returns:
            of the pairs open_clip's `image_to_text_…`, `text_to_image_…`, `clip_val_loss` and
            `num_samples`, of the classes `zero_shot_…`, and how many samples were left out.

        Raises:
            InputError: on all ranks, where nothing can be evaluated.
        """
        metrics: dict[str, float] = {}
        with torch.no_grad(), _evaluating(module):  # what inference mode makes cannot be trained
            if self._config.input:
                metrics |= self._run_pairs(module)
            if self._config.zero_shot:
                metrics |= self._run_classes(module, self._config.zero_shot)
        return metrics

    def _run_pairs(self, module: nn.Module) -> dict[str, float]:
        work = partial(self._reader.pairs, module, partial(_caption, column=self._config.caption))
        pairs = self._encode(self._config.input, work)
        numbers = torch.arange(len(pairs.texts))
        to_text = ranks(pairs.images, pairs.captions, numbers, self._peers)
        to_image = ranks(pairs.captions, pairs.images, numbers, self._peers)
        return retrieval_metrics(to_text, to_image) | {
            "clip_val_loss": pairs.loss / len(numbers),
            "num_samples": float(len(numbers)),
            "evaluation_rejected": float(len(pairs.rejected)),
        }

    def _run_classes(self, module: nn.Module, config: ZeroShotConfig) -> dict[str, float]:
        work = partial(self._reader.images, module, partial(_label, column=config.label))
        found = self._encode(config.input, work)
        classes = from_first(partial(find_classes, config, found.texts), self._peers)
        targets = class_numbers(found.texts, classes)
        known = targets >= 0
        if not known.all() and self._peers.first:
            log.warning("%s", tell_unknown(found.texts, classes))
        vectors = self._build_classifier(module, config, list(classes.values()))
        ranked = ranks(found.images[known], vectors, targets[known], self._peers)
        return zero_shot_metrics(ranked, len(classes)) | {
            "zero_shot_samples": float(known.sum()),
            "zero_shot_unknown": float((~known).sum()),
            "zero_shot_rejected": float(len(found.rejected)),
        }

    def _build_classifier(
        self, module: nn.Module, config: ZeroShotConfig, names: Sequence[str]
    ) -> Tensor:
        templates = from_first(partial(read_templates, config.templates), self._peers)
        with self._cast():
            return build_classifier(module, self._model.tokenize, names, templates, self._peers)

    def _encode(self, inputs: tuple[str, ...], work: Work) -> Features:
        """All samples of an input, in their order; their listing is kept."""
        if inputs not in self._batches:
            entries = from_first(partial(find_entries, inputs), self._peers)
            self._batches[inputs] = _cut(entries, self._config)
        with self._cast():
            whole = join(share_out(self._batches[inputs], work, self._peers))
        where = ", ".join(inputs)
        if not whole.texts:
            raise InputError(f"{where}: nothing to evaluate; {whole.rejected[0]}")
        if whole.rejected and self._peers.first:
            count = len(whole.rejected)
            log.warning("%s: %d samples left out, first %s", where, count, whole.rejected[0])
        return whole

    def _cast(self) -> torch.autocast:
        enabled = self._autocast is not None
        return torch.autocast(self._peers.device.type, self._autocast, enabled=enabled)


def find_entries(inputs: Sequence[str]) -> list[Entry]:
    """All samples of some inputs, in the order of their shards; damaged shards are left out.

    Raises:
        InputError: an input that is missing, or no sample in any.
    """
    entries: list[Entry] = []
    for shard in find_shards(inputs).shards:
        listing = shard.list()
        if listing.damage:
            log.warning("%s: left out, %s", shard.path, listing.damage)
            continue
        entries += listing.entries
    if not entries:
        raise InputError(f"{', '.join(inputs)}: no sample to evaluate; expected images")
    return entries


def _cut(entries: Sequence[Entry], config: EvaluationConfig) -> Batches:
    """Batches of what is evaluated: with a limit, of samples spread evenly over all."""
    chosen, size = spread(entries, config.limit), config.batch_size
    return [chosen[start : start + size] for start in range(0, len(chosen), size)]


def spread(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """At most `limit` of the samples, spread evenly over all."""
    count = min(len(entries), limit or len(entries))
    return [entries[number * len(entries) // count] for number in range(count)]


def _caption(sample: Prepared, column: str) -> str:
    return str(sample.columns.get(column) or "")


def _label(sample: Prepared, column: str | None) -> str:
    return label_of(sample.entry, sample.columns, column)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every part has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
