"""What the user named as input, cut into shards of samples.

A folder is read as img2dataset's `webdataset`, `files` or `parquet` output where it looks like
one, else as a folder of images. Only names and `_stats.json` are read here.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import PurePosixPath
from typing import Any

from clipray import images, parquet, uri
from clipray.errors import InputError
from clipray.shards import FilesShard, FolderShard, ParquetShard, Shard, TarShard, TextShard
from clipray.sources import LOOKUPS, Source, find_sources, pictures_below
from clipray.uri import AnyPath

IMAGES_PER_SHARD = 1_000  # of a plain folder
LINES_PER_SHARD = 10_000  # of a text file
MAX_STATS_BYTES = 1 << 20
STATS = "_stats.json"


@dataclass(frozen=True, slots=True)
class Found:
    """The shards of all inputs in their order, and what was passed over with the reason."""

    shards: tuple[Shard, ...]
    skipped: dict[str, str] = field(default_factory=dict)


def find_shards(inputs: Sequence[str], known: Mapping[str, Sequence[str]] | None = None) -> Found:
    """Cut the inputs into shards.

    Args:
        inputs: folders of img2dataset's output or of images, single `.tar` or `.parquet` shards,
            text files with one text a line, or patterns of them; each a path or a URI, each maybe
            given as `NAME=…`. See `sources.find_sources`.
        known: names of shards → members of those slices of plain folders that stay as they were
            cut, so that images which came later become shards of their own.

    Raises:
        InputError: when an input is missing or empty, or two share a name.
    """
    sources = find_sources(inputs)
    shards: list[Shard] = []
    skipped = dict(sources.missing)
    for source in sources.found:
        with uri.reachable(source.root):
            found = _find(source, known or {})
        shards.extend(found.shards)
        skipped.update(found.skipped)
    if not shards:
        told = "; ".join(f"{path}: {reason}" for path, reason in list(skipped.items())[:3])
        raise InputError(f"nothing to read in {', '.join(inputs)}: {told or 'no shard'}")
    _require_distinct(shards)
    return Found(tuple(shards), skipped)


def _require_distinct(shards: Sequence[Shard]) -> None:
    """Each shard becomes a part by its name; of two with one name, one would be lost."""
    named: dict[str, Shard] = {}
    for shard in shards:
        other = named.setdefault(shard.name, shard)
        if other is not shard:
            raise InputError(
                f"{other.path} and {shard.path}: both are called '{shard.name}'; name their "
                "inputs apart: --input NAME=…"
            )


def _find(source: Source, known: Mapping[str, Sequence[str]]) -> Found:
    names = source.chosen or _names(source.root)
    for find in (
        _find_tars,
        _find_folders,
        _find_parquets,
        partial(_find_images, known),
        _find_lines,
    ):
        found = find(source, names)
        if found.shards or found.skipped:
            return found
    what = source.root / source.chosen[0] if source.chosen else source.root
    raise InputError(
        f"{what}: no image and no .tar in it; expected a folder of images "
        f"({', '.join(sorted(images.SUFFIXES))}) or of img2dataset's output (NNNNN.tar, "
        "NNNNN.parquet or folders NNNNN), or a .txt with one text a line"
    )


def _names(folder: AnyPath) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir()))


def _find_tars(source: Source, names: Sequence[str]) -> Found:
    tars = [source.root / name for name in names if name.endswith(".tar")]
    return _finished(source, tars, TarShard)


def _find_folders(source: Source, names: Sequence[str]) -> Found:
    """Folders beside a `_stats.json` of the same name."""
    present = set(names)
    if source.chosen or not any(name + STATS in present for name in names):
        return Found(())
    folders = [source.root / name for name in names if PurePosixPath(name).suffix == ""]
    return _finished(source, [path for path in folders if path.is_dir()], FilesShard)


def _find_parquets(source: Source, names: Sequence[str]) -> Found:
    files = [source.root / name for name in names if name.endswith(".parquet")]
    if source.chosen is None and not any(map(_has_images, files)):
        return Found(())  # of metadata, as they stand beside tars and folders
    return _finished(source, files, ParquetShard)


def _find_images(known: Mapping[str, Sequence[str]], source: Source, names: Sequence[str]) -> Found:
    if source.chosen is None:
        names = pictures_below(source.root)
    images_ = [name for name in names if images.is_picture(name)]
    kept = _kept(source, set(images_), known)
    taken = {name for members in kept for name in members}
    fresh = [name for name in images_ if name not in taken]
    starts = range(0, len(fresh), IMAGES_PER_SHARD)
    cut = [tuple(fresh[start : start + IMAGES_PER_SHARD]) for start in starts]
    return Found(tuple(FolderShard(source.name, source.root, names) for names in (*kept, *cut)))


def _kept(
    source: Source, images_: set[str], known: Mapping[str, Sequence[str]]
) -> list[tuple[str, ...]]:
    """The known slices of a folder of which something is still there."""
    slices = (tuple(m) for name, m in known.items() if m and name == f"{source.name}/{m[0]}")
    return [members for members in slices if not images_.isdisjoint(members)]


def _find_lines(source: Source, names: Sequence[str]) -> Found:
    files = [name for name in source.chosen or () if name.endswith(".txt")]
    shards = [shard for name in files for shard in _cut_lines(source, source.root / name)]
    del names  # the .txt files of a folder are captions, not inputs
    return Found(tuple(shards))


def _cut_lines(source: Source, path: AnyPath) -> list[TextShard]:
    single = source.chosen is not None and len(source.chosen) == 1
    name = source.name if single else f"{source.name}/{path.stem}"
    shards: list[TextShard] = []
    start = first = 0
    with path.open("rb") as stream:
        while lines := list(islice(stream, LINES_PER_SHARD)):
            shards.append(TextShard(name, path, start, first, len(lines)))
            start, first = start + sum(map(len, lines)), first + len(lines)
    if not shards:
        raise InputError(f"{path}: empty; expected one text a line")
    return shards


def _finished(
    source: Source, paths: Sequence[AnyPath], kind: Callable[[str, Any, int | None], Shard]
) -> Found:
    """The shards that img2dataset has finished; it writes `_stats.json` last.

    Where no shard has one, they are from another program, and all are taken.
    """
    with ThreadPoolExecutor(LOOKUPS) as pool:
        counts = list(pool.map(_successes, paths))
    ours = any(count is not None for count in counts)
    pairs = list(zip(paths, counts, strict=True))
    taken = [(path, count) for path, count in pairs if count is not None or not ours]
    left = [path for path, count in pairs if count is None and ours]
    return Found(
        tuple(kind(source.name, path, count) for path, count in taken),
        {str(path): f"no {STATS}, img2dataset has not finished it" for path in left},
    )


def _successes(path: AnyPath) -> int | None:
    stats = path.with_name(f"{path.stem}{STATS}")
    try:
        return int(json.loads(uri.read(stats, 0, MAX_STATS_BYTES))["successes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_images(path: AnyPath) -> bool:
    try:
        return parquet.image_column(path) is not None
    except OSError:  # unfinished or damaged; another one tells
        return False
