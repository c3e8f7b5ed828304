"""Zero-shot accuracy of a model as it is run: pictures classified by the names of their classes."""

import logging
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray

from clipray.encoder import Encoder
from clipray.errors import InputError
from clipray.evaluate.pairs import encode_texts, encoded
from clipray.training.peers import Peers
from clipray.training.retrieval import ranks
from clipray.training.zero_shot import (
    ZeroShotConfig,
    class_numbers,
    find_classes,
    label_of,
    read_templates,
    tell_unknown,
    zero_shot_metrics,
)

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


def zero_shot(
    config: ZeroShotConfig, encoder: Encoder, limit: int | None
) -> tuple[dict[str, float], list[str]]:
    """Accuracy by the names that training has for it, and the samples that were left out.

    Raises:
        InputError: no usable picture, or no label is one of the classes.
    """
    templates = read_templates(config.templates)
    vectors: list[Vectors] = []
    labels: list[str] = []
    rejected: list[str] = []
    for sample, vector in chain.from_iterable(encoded(config.input, encoder, limit)):
        if vector is None:
            rejected.append(f"{sample.entry.key}: {sample.rejection}")
            continue
        vectors.append(vector)
        labels.append(label_of(sample.entry, sample.columns, config.label))
    if not vectors:
        raise InputError(f"{', '.join(config.input)}: nothing to evaluate; {rejected[0]}")
    classes = find_classes(config, labels)
    targets = class_numbers(labels, classes)
    known = targets >= 0
    if not known.all():
        log.warning("%s", tell_unknown(labels, classes))
    names = torch.from_numpy(class_vectors(encoder, list(classes.values()), templates))
    found = torch.from_numpy(np.stack(vectors))[known]
    metrics = zero_shot_metrics(ranks(found, names, targets[known], Peers()), len(classes))
    counts = {"zero_shot_samples": known.sum(), "zero_shot_unknown": (~known).sum()}
    return metrics | {name: float(count) for name, count in counts.items()}, rejected


def class_vectors(encoder: Encoder, names: Sequence[str], templates: Sequence[str]) -> Vectors:
    """(classes, dim) float32 unit vectors: of each name, the mean over its prompts."""
    prompts = [template.replace("{}", name) for name in names for template in templates]
    vectors = encode_texts(encoder, prompts).reshape(len(names), len(templates), -1)
    means = vectors.mean(1)
    return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True), np.float32)
