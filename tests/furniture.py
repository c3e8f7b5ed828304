"""What the placeholders of the documentation stand for: data as small as they may be.

Samples are drawings; an index of them answers for any collection, and the tiny CLIP for any model.
"""

import json
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.conftest import ARCHITECTURE
from tests.drawing import drawings, write_folder, write_member, write_shards
from tests.handmade import build_index
from tests.paddle.galleries import FILE as PADDLE_QUERIES
from tests.paddle.leaves import CLIP_YAML

MANY = 1200  # samples in SHARDS: a file of ours has batches of 1024

# What makes the place that stands behind it.
_MAKES = r"(--output|--work|--to|index(\.py)? build .*--index)"

# PaddleClas's file asks for an hour.
_SMALLER = {
    "epochs: 120": "epochs: 1",
    "warmup_epoch: 10": "warmup_epoch: 0",
    "batch_size: 256": "batch_size: 20",
    "num_workers: 4": "num_workers: 0",
    "CLIP_vit_base_patch32_224_with_TextEncoder": "paddle.json",
}


@dataclass(frozen=True)
class Stock:
    """What was made before: the tiny CLIP, embeddings of drawings and captions, Ray's token."""

    model: Path
    embeddings: Path
    token: str


def lay_out(folder: Path, text: str, stock: Stock) -> None:
    """Put down in `folder` what commands name before they make it, or without making it."""
    text = text.replace("\\\n", " ")
    for names, make in FURNITURE.items():
        for name in names.split():
            word = rf"{re.escape(name)}(?![\w-])"
            found = re.search(rf"(?<![\w-]){word}", text)
            made = re.search(rf"{_MAKES}[ =](\S*/)?{word}(?!/)", text)
            if found and not (made and made.start() < found.start()):
                make(folder / name, stock)


def photos(path, stock):
    write_folder(path)


def new_photos(path, stock):
    write_folder(path, 60)


def jpegs(path, stock):
    path.mkdir()
    for number in range(20):
        jpeg(path / f"{number:02d}.jpg", stock, number)


def jpeg(path, stock, number=0):
    with Image.open(write_png(path.with_suffix(".png"), number)) as image:
        image.resize((300, 300)).save(path)
    path.with_suffix(".png").unlink()


def write_png(path, number):
    path.write_bytes(drawings(number + 1)[number].png)
    return path


def shards(path, stock):
    write_shards(path, MANY, per_shard=300)


def few_shards(path, stock):
    write_shards(path, 60, per_shard=30)


def laion(path, stock):
    """Shards whose rows have more columns; a filter leaves some of them out."""
    path.mkdir(parents=True)
    for number in range(3):
        with tarfile.open(path / f"{number:05d}.tar", "w") as tar:
            for place, drawing in enumerate(drawings(16)):
                key = f"{number:05d}{place:04d}"
                flag = "UNLIKELY" if place % 4 else "NSFW"
                row = {"key": key, "caption": drawing.caption, "width": 512, "NSFW": flag}
                write_member(tar, f"{key}.json", json.dumps(row).encode())
                write_member(tar, f"{key}.png", drawing.png)


def labelled(path, stock):
    """A folder for each label."""
    for number, drawing in enumerate(drawings()):
        label = path / drawing.caption.split()[-1]
        label.mkdir(parents=True, exist_ok=True)
        write_png(label / f"{number}.png", number)


def texts(path, stock):
    path.write_text("".join(f"{one.caption}\n" for one in drawings(20)), encoding="utf-8")


def classes(path, stock):
    labels = sorted({one.caption.split()[-1] for one in drawings()})
    path.write_text("".join(f"{label}\ta {label}\n" for label in labels), encoding="utf-8")


def prompts(path, stock):
    path.write_text("{}\na drawing of {}\n", encoding="utf-8")


def keys(path, stock):
    path.write_text("PHOTOS/even/0000.png\nshards/000000000\n", encoding="utf-8")


def token(path, stock):
    path.write_text(stock.token, encoding="utf-8")


def model(path, stock):
    shutil.copytree(stock.model, path)


def architecture(path, stock):
    path.write_text(json.dumps(ARCHITECTURE), encoding="utf-8")


def embeddings(path, stock):
    shutil.copytree(stock.embeddings, path)


def images(path, stock):
    build_index(path, stock.embeddings, shards=2, modality="image")


def captions(path, stock):
    build_index(path, stock.embeddings, shards=2, modality="text")


def demo(path, stock):
    """The indices that the file of this name serves."""
    place = path.parents[1] / "clipray-demo"
    images(place / "index-images", stock)
    captions(place / "index-texts", stock)


def read_keys(path, stock):
    """What the files of this folder want, beside an index in a bucket."""
    (path.parents[1] / "read_keys").write_text("key", encoding="utf-8")
    images(path.parents[1] / "bucket/idx", stock)


def training_file(path, stock):
    """PaddleClas's, with a tiny model, one epoch, small batches, and its data."""
    text = CLIP_YAML.read_text(encoding="utf-8")
    for found, put in _SMALLER.items():
        assert found in text, found
        text = text.replace(found, put)
    path.write_text(text, encoding="utf-8")
    tower = ARCHITECTURE["text_cfg"] | {"context_length": 77}
    tiny = ARCHITECTURE | {"embed_dim": 512, "text_cfg": tower}
    (path.parent / "paddle.json").write_text(json.dumps(tiny), encoding="utf-8")
    for split in ("train", "eval"):
        write_shards(path.parent / "mscoco" / split)


def query_file(path, stock):
    shutil.copy(PADDLE_QUERIES, path)


FURNITURE = {
    "PHOTOS": photos,
    "NEW_PHOTOS": new_photos,
    "photos": jpegs,
    "a.jpg b.jpg cat.jpg dog.jpg query.jpg": jpeg,
    "SHARDS shards": shards,
    "HELD_OUT": few_shards,
    "bucket/laion": laion,
    "bucket/shards": few_shards,
    "PICTURES": labelled,
    "texts.txt captions.txt queries.txt": texts,
    "classes.txt": classes,
    "prompts.txt": prompts,
    "gone.txt": keys,
    "TOKEN": token,
    "MODEL": model,
    "tiny.json": architecture,
    "EMB EMB2 THEIRS": embeddings,
    "IDX bucket/idx": images,
    "IDX_TEXTS": captions,
    "serve_configs/local.yaml": demo,
    "serve_configs/replicated.yaml": read_keys,
    "CLIP.yaml": training_file,
    "inference_clip.yaml": query_file,
}
