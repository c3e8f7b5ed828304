"""How well an index answers: recall of its own rows by their captions.

The figures are of the whole way, encoder and index, as a user meets it.
"""

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field
from tqdm import tqdm

from clipray.encoder import Encoder, open_encoder
from clipray.encoder_options import EncoderOptions
from clipray.errors import InputError
from clipray.index import Index
from clipray.matches import Matches
from clipray.report import Report

RANKS = (1, 5, 10)
BATCH = 256


class EvaluateConfig(EncoderOptions):
    """Measure how often a row's caption finds that row."""

    index: Path | str = Field(description="index with captions: a folder, or a URI")


class EvaluateReport(Report):
    """Recall at 1, 5 and 10 by open_clip's metric names, and how many queries it is over."""

    queries: int
    metrics: dict[str, float]

    def summary(self) -> str:
        """One line a metric."""
        lines = [f"{name} {value:.4f}" for name, value in self.metrics.items()]
        return "\n".join([f"{self.queries} captions", *lines])


def evaluate(config: EvaluateConfig) -> EvaluateReport:
    """Search the captions of all rows.

    Raises:
        InputError: when no row has a caption.
    """
    index = Index.open(config.index)
    encoder = open_encoder(index.manifest.source, config)
    index.manifest.model.require(encoder.identity, f"{config.index}: the model")
    return caption_recall(index, encoder)


def caption_recall(index: Index, encoder: Encoder) -> EvaluateReport:
    """Recall@k of text→image, where only the row that owns the caption counts as found."""
    pairs = [(key, text) for key, text in index.column("caption").items() if text]
    if not pairs:
        raise InputError("no row of the index has a caption; nothing to evaluate")
    ranks: list[int] = []
    for start in tqdm(range(0, len(pairs), BATCH), unit="batch", desc="evaluate"):
        keys, texts = zip(*pairs[start : start + BATCH], strict=True)
        found = index.search(encoder.encode_texts(texts), k=max(RANKS))
        ranks += _ranks(keys, found)
    name = f"text_to_{index.manifest.modality}_R@"
    metrics = {f"{name}{k}": sum(rank < k for rank in ranks) / len(ranks) for k in RANKS}
    return EvaluateReport(queries=len(pairs), metrics=metrics)


def _ranks(keys: Sequence[str], found: Sequence[Matches]) -> list[int]:
    placed = ([match.key for match in matches] for matches in found)
    return [
        place.index(key) if key in place else max(RANKS)
        for key, place in zip(keys, placed, strict=True)
    ]
