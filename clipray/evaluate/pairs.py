"""Pictures and captions as vectors: from captioned data, an embeddings folder, or an index."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from clipray.embeddings import KEY_COLUMN, Halves, Parts
from clipray.encoder import Encoder
from clipray.errors import InputError
from clipray.evaluate.sample import Row, place_of
from clipray.prepare import PartSettings, Prepared, prepare
from clipray.samples import Location
from clipray.training.evaluation import find_entries, spread
from clipray.training.features import copies_at_hand

BATCH = 64
THREADS = 2

Vectors = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Pictures, captions, and which belongs to which.

    Attributes:
        keys: of the pictures.
        places: where they lie, where that is known.
        images: (n, dim) float32 unit vectors.
        texts: the captions.
        captions: (m, dim) float32 unit vectors.
        owners: (m,) int64: the number of the picture that each caption is of; each has one.
        rejected: key and reason of the samples that were left out.
    """

    keys: tuple[str, ...]
    places: tuple[Location | None, ...]
    images: Vectors
    texts: tuple[str, ...]
    captions: Vectors
    owners: NDArray[np.int64]
    rejected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """How captioned data are read.

    Attributes:
        caption: column with the text.
        several: whether each line of a text is a caption of its own.
        limit: most samples, spread evenly; all where None.
    """

    caption: str = "caption"
    several: bool = False
    limit: int | None = None


def read_pairs(inputs: Sequence[str], encoder: Encoder, reading: Reading) -> Pairs:
    """Encode captioned data.

    Raises:
        InputError: an input that is missing, or no sample with picture and caption.
    """
    kept: list[Prepared] = []
    captions: list[list[str]] = []
    vectors: list[Vectors] = []
    rejected: list[str] = []
    for batch in encoded(inputs, encoder, reading.limit):
        for sample, vector in batch:
            texts = _captions(sample, reading)
            reason = sample.rejection or ("" if texts else f"no text in column '{reading.caption}'")
            if reason or vector is None:
                rejected.append(f"{sample.entry.key}: {reason}")
                continue
            kept.append(sample)
            captions.append(texts)
            vectors.append(vector)
    if not kept:
        raise InputError(f"{', '.join(inputs)}: nothing to evaluate; {rejected[0]}")
    texts = [text for some in captions for text in some]
    return Pairs(
        keys=tuple(sample.entry.key for sample in kept),
        places=tuple(sample.entry.image for sample in kept),
        images=np.stack(vectors),
        texts=tuple(texts),
        captions=encode_texts(encoder, texts),
        owners=np.repeat(np.arange(len(kept)), [len(some) for some in captions]),
        rejected=tuple(rejected),
    )


def encoded(
    inputs: Sequence[str], encoder: Encoder, limit: int | None
) -> Iterator[list[tuple[Prepared, Vectors | None]]]:
    """Samples in batches, each with the (dim,) vector of its picture, if it has a usable one.

    Raises:
        InputError: an input that is missing, or no sample in any.
    """
    entries = spread(find_entries(inputs), limit)
    settings = PartSettings(("image",), BATCH, THREADS)
    at_hand = copies_at_hand() if limit is None else nullcontext
    samples = prepare(entries, settings, encoder.pixels, at_hand)
    for _ in tqdm(range(0, len(entries), BATCH), desc="encode", unit="batch"):
        batch = list(islice(samples, BATCH))
        usable = [sample.pixels for sample in batch if sample.pixels is not None]
        vectors = iter(encoder.encode_images(usable) if usable else ())
        yield [(one, None if one.pixels is None else next(vectors)) for one in batch]


def encode_texts(encoder: Encoder, texts: Sequence[str]) -> Vectors:
    """(n, dim) float32 unit vectors of any number of texts, at least one."""
    starts = range(0, len(texts), BATCH)
    return np.concatenate([encoder.encode_texts(texts[at : at + BATCH]) for at in starts])


def pairs_of_rows(rows: Sequence[Row], captions: Vectors) -> Pairs:
    """Rows of an image index as pictures.

    Args:
        rows: with captions.
        captions: (n, dim) float32, theirs.
    """
    return Pairs(
        keys=tuple(row.key for row in rows),
        places=tuple(row.place for row in rows),
        images=np.stack([row.vector for row in rows]),
        texts=tuple(row.caption for row in rows),
        captions=captions,
        owners=np.arange(len(rows)),
    )


def pairs_of_embeddings(root: Path, limit: int | None) -> Pairs:
    """Rows of an embeddings folder that holds both modalities.

    Rows of one and the same picture are one picture with several captions.

    Args:
        root: the folder.
        limit: most rows, spread evenly; all where None.

    Raises:
        InputError: no such folder, or it lacks a modality.
        DamagedError: a file that is missing or changed.
    """
    images, texts = Parts.open(root, "image"), Parts.open(root, "text")
    count = min(images.rows, limit or images.rows)
    wanted = np.arange(count) * images.rows // count
    rows: list[dict[str, Any]] = []
    vectors: list[tuple[Halves, Halves]] = []
    start = 0
    for number in images:
        total = images.parts[number].rows
        inside = wanted[(wanted >= start) & (wanted < start + total)] - start
        vectors.append((images.vectors(number)[inside], texts.vectors(number)[inside]))
        rows += images.table(number).take(inside).to_pylist()
        start += total
    both = (np.concatenate(some).astype(np.float32) for some in zip(*vectors, strict=True))
    return _grouped(rows, *both)


def _grouped(rows: Sequence[dict[str, Any]], images: Vectors, captions: Vectors) -> Pairs:
    numbers: dict[Any, int] = {}
    firsts: list[int] = []
    owners: list[int] = []
    for place, row in enumerate(rows):
        path, offset = row.get("source_path"), row.get("source_offset")
        picture = (path, offset) if path else place
        if picture not in numbers:
            numbers[picture] = len(firsts)
            firsts.append(place)
        owners.append(numbers[picture])
    return Pairs(
        keys=tuple(str(rows[place][KEY_COLUMN]) for place in firsts),
        places=tuple(place_of(rows[place]) for place in firsts),
        images=images[firsts],
        texts=tuple(str(row.get("caption") or "") for row in rows),
        captions=captions,
        owners=np.array(owners),
    )


def _captions(sample: Prepared, reading: Reading) -> list[str]:
    text = str(sample.columns.get(reading.caption) or "")
    lines = text.splitlines() if reading.several else [text]
    return [line.strip() for line in lines if line.strip()]
