"""Pictures and texts that two ways to run a model are compared on: drawn here, or a user's."""

import io
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from clipray.errors import ImageError, InputError
from clipray.pixels import Pixels, Reader
from clipray.sources import pictures_below

SIDE = 256
LOOKS = ("small", "large", "red", "old wooden", "very bright", "blurred")
THINGS = ("dog", "bowl of soup", "bridge", "bicycle", "city", "pair of shoes", "cat asleep")
PLACES = ("", "in the snow", "on a table beside a window", "at night, seen from far above")


def drawn_pictures(count: int, read: Reader) -> list[Pixels]:
    """Clouds of colour with shapes on them, the same at every call."""
    return [read(_draw(np.random.default_rng(seed))) for seed in range(count)]


def read_pictures(folder: Path, count: int, read: Reader) -> list[Pixels]:
    """The first pictures below a folder, by name; what cannot be decoded is left out.

    Raises:
        InputError: when there is none.
    """
    files = [folder / name for name in pictures_below(folder)]
    found = list(islice(_readable(files, read), count))
    if not found:
        raise InputError(f"{folder}: no picture that can be read; --images takes a folder of some")
    return found


def made_texts(count: int) -> list[str]:
    """Captions of one to about sixty words, the same at every call."""
    rng = np.random.default_rng(0)
    texts = ["", "a", " and ".join(THINGS * 4)]
    while len(texts) < count:
        look, thing, place = (str(rng.choice(words)) for words in (LOOKS, THINGS, PLACES))
        texts.append(f"a photo of a {look} {thing} {place}".strip())
    return texts[:count]


def _readable(files: list[Path], read: Reader) -> Iterator[Pixels]:
    for path in files:
        try:
            yield read(path.read_bytes())
        except (ImageError, OSError):
            continue


def _draw(rng: np.random.Generator) -> bytes:
    clouds = np.zeros((SIDE, SIDE, 3))
    for cells in (2, 5, 12, 40):
        grid = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
        clouds += np.asarray(grid.resize((SIDE, SIDE), Image.Resampling.BICUBIC)) / cells
    picture = Image.fromarray((clouds * (255 / clouds.max())).astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(rng.integers(0, 6))):
        left, top, side = (int(number) for number in rng.integers(8, SIDE // 2, 3))
        colour = "#" + rng.bytes(3).hex()
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape((left, top, left + side, top + side), fill=colour)
    written = io.BytesIO()
    picture.save(written, "PNG", compress_level=1)
    return written.getvalue()
