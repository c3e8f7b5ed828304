"""Drawn pictures with captions, as a plain folder and as img2dataset shards."""

import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 80),
    "blue": (40, 80, 200),
    "yellow": (235, 200, 40),
}
SHAPES = ("circle", "square", "triangle", "ring", "cross")
SIZES = ("small", "large")
COUNT = len(COLOURS) * len(SHAPES) * len(SIZES)


@dataclass(frozen=True)
class Drawing:
    caption: str
    png: bytes


def drawings(count: int = COUNT) -> list[Drawing]:
    """The first `count` drawings, all different."""
    names = [(size, colour, shape) for size in SIZES for shape in SHAPES for colour in COLOURS]
    return [Drawing(f"a {' '.join(name)}", _png(*name, turn=i // COUNT)) for i, name in
            enumerate((names * (1 + count // len(names)))[:count])]  # fmt: skip


def write_folder(root: Path, count: int = COUNT) -> Path:
    """Images in two folders, captions beside them."""
    for number, drawing in enumerate(drawings(count)):
        path = root / ("odd" if number % 2 else "even") / f"{number:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(drawing.png)
        path.with_suffix(".txt").write_text(drawing.caption, encoding="utf-8")
    return root


def write_shards(root: Path, count: int = COUNT, per_shard: int = 16) -> Path:
    """Tars with their `_stats.json`, as img2dataset writes them."""
    root.mkdir(parents=True, exist_ok=True)
    drawn = drawings(count)
    for shard, start in enumerate(range(0, count, per_shard)):
        samples = drawn[start : start + per_shard]
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for place, drawing in enumerate(samples):
                write_sample(tar, f"{shard:05d}{place:04d}", drawing)
        stats = {"count": len(samples), "successes": len(samples)}
        (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats), encoding="utf-8")
    return root


def write_sample(tar: tarfile.TarFile, key: str, drawing: Drawing) -> None:
    """One sample: text, record and picture, the picture not first."""
    record = {"key": key, "caption": drawing.caption, "width": 48, "url": f"file:{key}"}
    write_member(tar, f"{key}.json", json.dumps(record).encode())
    write_member(tar, f"{key}.png", drawing.png)
    write_member(tar, f"{key}.txt", drawing.caption.encode())


def write_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _png(size: str, colour: str, shape: str, turn: int) -> bytes:
    image = Image.new("RGB", (48, 48), (250, 250, 250))
    draw = ImageDraw.Draw(image)
    reach = (20 if size == "large" else 11) + turn % 3
    box = (24 - reach, 24 - reach, 24 + reach, 24 + reach)
    fill = COLOURS[colour]
    if shape == "circle":
        draw.ellipse(box, fill=fill)
    elif shape == "square":
        draw.rectangle(box, fill=fill)
    elif shape == "ring":
        draw.ellipse(box, outline=fill, width=6)
    elif shape == "triangle":
        draw.polygon([(box[0], box[3]), (box[2], box[3]), (24, box[1])], fill=fill)
    else:
        draw.line(box, fill=fill, width=7)
        draw.line((box[0], box[3], box[2], box[1]), fill=fill, width=7)
    written = io.BytesIO()
    image.save(written, "PNG")
    return written.getvalue()
