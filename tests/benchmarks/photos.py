"""Photo-like JPEGs as img2dataset writes them: 256 px shorter side, quality 95, 20 to 30 kB."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from tests.drawing import write_member

SIDE = 256
RATIOS = (1.0, 4 / 3, 3 / 4, 3 / 2, 1.0)


def write_photo_shards(root: Path, count: int, per_shard: int) -> Path:
    """Tars of photos with records and captions, and their `_stats.json`."""
    root.mkdir(parents=True)
    for shard, start in enumerate(range(0, count, per_shard)):
        numbers = range(start, min(count, start + per_shard))
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for place, number in enumerate(numbers):
                _write_sample(tar, f"{shard:05d}{place:04d}", number)
        stats = {"count": len(numbers), "successes": len(numbers)}
        (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats), encoding="utf-8")
    return root


def photo(number: int) -> bytes:
    """The same bytes for the same number."""
    rng = np.random.default_rng(number)
    ratio = RATIOS[number % len(RATIOS)]
    width, height = round(SIDE * max(1, ratio)), round(SIDE * max(1, 1 / ratio))
    light = Image.fromarray(rng.integers(0, 256, (4, 5, 3), dtype=np.uint8))
    image = light.resize((width, height), Image.Resampling.BICUBIC)
    _draw(ImageDraw.Draw(image), rng, width, height)
    pixels = np.asarray(image.filter(ImageFilter.GaussianBlur(0.8))).astype(np.float32)
    grain = rng.normal(0, rng.uniform(0.5, 3.5), (height, width, 1))
    written = io.BytesIO()
    grained = np.clip(pixels + grain, 0, 255).astype(np.uint8)
    Image.fromarray(grained).save(written, "JPEG", quality=95)
    return written.getvalue()


def _draw(draw: ImageDraw.ImageDraw, rng: np.random.Generator, width: int, height: int) -> None:
    for _ in range(rng.integers(10, 40)):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        reach = rng.exponential(22) + 2
        shape = draw.ellipse if rng.random() < 0.6 else draw.rectangle
        box = (x - reach, y - reach * rng.uniform(0.3, 1), x + reach, y + reach)
        shape(box, fill=tuple(int(c) for c in rng.integers(0, 256, 3)))


def _write_sample(tar: tarfile.TarFile, key: str, number: int) -> None:
    caption = f"photo number {number}"
    record = {"key": key, "caption": caption, "url": f"https://example.org/{number}.jpg"}
    write_member(tar, f"{key}.jpg", photo(number))
    write_member(tar, f"{key}.json", json.dumps(record).encode())
    write_member(tar, f"{key}.txt", caption.encode())
