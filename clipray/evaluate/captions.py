"""How often a caption finds its own row: encoder and index together, as a user meets them."""

from collections.abc import Sequence

from tqdm import tqdm

from clipray.encoder import Encoder
from clipray.errors import InputError
from clipray.evaluate.verdict import EvaluateReport
from clipray.index import Index
from clipray.matches import Matches

RANKS = (1, 5, 10)
BATCH = 256


def caption_recall(index: Index, encoder: Encoder, limit: int | None = None) -> EvaluateReport:
    """Recall@k of text→image, where only the row that owns the caption counts as found.

    Args:
        index: with captions.
        encoder: of its model.
        limit: most captions, spread evenly over all; all by default.

    Raises:
        InputError: when no row has a caption.
    """
    pairs = [(key, text) for key, text in index.column("caption").items() if text]
    if not pairs:
        raise InputError("no row of the index has a caption; nothing to evaluate")
    count = min(len(pairs), limit or len(pairs))
    pairs = [pairs[number * len(pairs) // count] for number in range(count)]
    ranks: list[int] = []
    for start in tqdm(range(0, count, BATCH), unit="batch", desc="evaluate"):
        keys, texts = zip(*pairs[start : start + BATCH], strict=True)
        found = index.search(encoder.encode_texts(texts), k=max(RANKS))
        ranks += _ranks(keys, found)
    name = f"text_to_{index.manifest.modality}_R@"
    metrics = {f"{name}{k}": sum(rank < k for rank in ranks) / count for k in RANKS}
    return EvaluateReport(queries=count, metrics=metrics)


def _ranks(keys: Sequence[str], found: Sequence[Matches]) -> list[int]:
    placed = ([match.key for match in matches] for matches in found)
    return [
        place.index(key) if key in place else max(RANKS)
        for key, place in zip(keys, placed, strict=True)
    ]
