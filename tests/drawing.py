"""Drawn pictures with captions, as a plain folder and in the formats of img2dataset."""

import io
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
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
    for shard, samples in enumerate(_cut(count, per_shard)):
        with tarfile.open(root / f"{shard:05d}.tar", "w") as tar:
            for place, drawing in enumerate(samples):
                write_sample(tar, f"{shard:05d}{place:04d}", drawing)
        _write_stats(root, shard, len(samples))
    return root


def write_files(root: Path, count: int = COUNT, per_shard: int = 16) -> Path:
    """The same samples in img2dataset's `files` format: a folder a shard, stats beside it."""
    for shard, samples in enumerate(_cut(count, per_shard)):
        folder = root / f"{shard:05d}"
        folder.mkdir(parents=True)
        for place, drawing in enumerate(samples):
            for suffix, data in _members(f"{shard:05d}{place:04d}", drawing):
                (folder / f"{shard:05d}{place:04d}{suffix}").write_bytes(data)
        _write_stats(root, shard, len(samples))
        table = pa.table({"key": ["x"], "status": ["success"], "caption": [None]})
        pq.write_table(table, root / f"{shard:05d}.parquet")  # of metadata, it holds no image
    return root


def write_parquets(root: Path, count: int = COUNT, per_shard: int = 16) -> Path:
    """The same in its `parquet` format: a row a sample, and rows of what could not be fetched."""
    root.mkdir(parents=True, exist_ok=True)
    for shard, samples in enumerate(_cut(count, per_shard)):
        rows = [
            {"width": 48, "url": f"file:{shard:05d}{place:04d}", "caption": drawing.caption,
             "key": f"{shard:05d}{place:04d}", "status": "success", "png": drawing.png}
            for place, drawing in enumerate(samples)
        ]  # fmt: skip
        failed = dict.fromkeys(rows[0]) | {
            "key": f"{shard:05d}9999",
            "status": "failed_to_download",
        }
        rows.insert(2, failed)
        table = pa.Table.from_pylist(rows[::-1])  # the order of img2dataset is no order
        pq.write_table(table, root / f"{shard:05d}.parquet", row_group_size=5)
        _write_stats(root, shard, len(samples))
    return root


def write_sample(tar: tarfile.TarFile, key: str, drawing: Drawing) -> None:
    """One sample: text, record and picture, the picture not first."""
    for suffix, data in _members(key, drawing):
        write_member(tar, key + suffix, data)


def write_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _cut(count: int, per_shard: int) -> Iterator[list[Drawing]]:
    drawn = drawings(count)
    return (drawn[start : start + per_shard] for start in range(0, count, per_shard))


def _members(key: str, drawing: Drawing) -> list[tuple[str, bytes]]:
    record = {"key": key, "caption": drawing.caption, "width": 48, "url": f"file:{key}"}
    return [
        (".json", json.dumps(record).encode()),
        (".png", drawing.png),
        (".txt", drawing.caption.encode()),
    ]


def _write_stats(root: Path, shard: int, successes: int) -> None:
    stats = {"count": successes, "successes": successes}
    (root / f"{shard:05d}_stats.json").write_text(json.dumps(stats), encoding="utf-8")


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
