"""`clipray evaluate`: an index, a service, captioned data and labelled pictures, measured."""

import logging
import os
import platform
from contextlib import nullcontext
from typing import Any

import faiss
import numpy as np
import open_clip
import torch

from clipray import __version__
from clipray.client import Client
from clipray.evaluate.asked import EvaluateConfig, require_sense
from clipray.evaluate.classes import zero_shot
from clipray.evaluate.page import write_report
from clipray.evaluate.pairs import Pairs, Reading, pairs_of_embeddings, read_pairs
from clipray.evaluate.pictures import thumbnails
from clipray.evaluate.retrieval import hardest, retrieval
from clipray.evaluate.searched import Searched
from clipray.evaluate.subject import Subject
from clipray.evaluate.threshold import score_pairs
from clipray.evaluate.verdict import EvaluateReport
from clipray.training.zero_shot import ZeroShotConfig

log = logging.getLogger(__name__)


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Measure what is asked for.

    Raises:
        ConfigError: nothing is asked for, or no model is named where one is needed.
        InputError: an index, data or a list that is missing or cannot be used.
        OutputError: the folder of the report holds something.
        ModelError: a model that cannot be used.
        MismatchError: an index, embeddings, a model or a service that do not belong together.
        ClipRayError: a service that cannot be reached or fails.
    """
    require_sense(config)
    with Client(config.url) if config.url else nullcontext() as client:
        subject = Subject(config, client)
        searched = Searched.of(subject, subject.index) if subject.index else Searched()
    pairs = _read(subject)
    found: dict[str, Any] = {
        "index": searched.recall,
        "service": searched.service,
        "versions": _versions(),
        "report": config.report,
    }
    if searched.own:
        found |= {"queries": searched.own.queries, "metrics": searched.own.metrics}
    labelled, left_out = _classify(subject)
    rejected = (*(pairs.rejected if pairs else ()), *left_out)
    found |= {"zero_shot": labelled, "rejected": rejected}
    if shown := pairs or searched.pairs:
        metrics, places = retrieval(shown)
        found |= {
            "retrieval": metrics if pairs else {},
            "scores": score_pairs(shown, config.seed),
            "hardest": hardest(shown, places),
        }
    report = EvaluateReport(**found, notes=searched.notes)
    return _written(config, report, shown) if config.report else report


def _read(subject: Subject) -> Pairs | None:
    config = subject.config
    if config.embeddings:
        return pairs_of_embeddings(config.embeddings, config.limit)
    if config.data:
        reading = Reading(config.caption, config.several, config.limit)
        return read_pairs(config.data, subject.encoder, reading)
    return None


def _classify(subject: Subject) -> tuple[dict[str, float], list[str]]:
    config = subject.config
    if not config.labelled:
        return {}, []
    asked = ZeroShotConfig(
        input=config.labelled,
        classes=config.classes,
        templates=config.templates,
        label=config.label,
    )
    return zero_shot(asked, subject.encoder, config.limit)


def _written(config: EvaluateConfig, report: EvaluateReport, pairs: Pairs | None) -> EvaluateReport:
    """Write the folder, with the pictures of the hardest pairs where they can be reached."""
    places = dict(zip(pairs.keys, pairs.places, strict=True)) if pairs else {}
    wanted = [key for hard in report.hardest for key in (hard.key, hard.rival)]
    pictures, missing = thumbnails(places, wanted)
    if missing:
        told = f"{len(missing)} pictures cannot be shown, first {missing[0]}"
        log.warning("%s", told)
        report = report.model_copy(update={"notes": (*report.notes, told)})
    write_report(report, config, pictures)
    return report


def _versions() -> dict[str, str]:
    modules = {"numpy": np, "torch": torch, "faiss": faiss, "open_clip": open_clip}
    packages = {name: str(module.__version__) for name, module in modules.items()}
    machine = f"{platform.machine()}, {os.cpu_count()} CPUs, {platform.system()}"
    own = {"clipray": __version__, "python": platform.python_version()}
    return own | packages | {"machine": machine}
