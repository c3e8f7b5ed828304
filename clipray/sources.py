"""What a user names as input, as sources: folders, files and patterns, local or behind a URI.

`NAME=` before an input names the source, which is the first part of every key. A pattern that
spans several folders makes a source of each, because the keys of img2dataset begin anew in every
folder. What lies in a source is found in `dataset`.
"""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import bracex

from clipray import images, uri
from clipray.errors import ConfigError, InputError
from clipray.uri import AnyPath

log = logging.getLogger(__name__)

MAX_FILES = 1_000_000  # that the braces of one pattern may name
LOOKUPS = 32  # at once; each is a request where the files are remote
SHARD_SUFFIXES = frozenset({".tar", ".parquet", ".txt"})

_LOCAL_MAGIC = re.compile(r"[*?\[{]")
_REMOTE_MAGIC = re.compile(r"[*{]")  # a question mark opens a query there, a bracket an IPv6 host


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of samples, or some files of it.

    Attributes:
        name: first part of the key of every sample.
        root: the folder.
        chosen: the names of its files that are meant; None stands for the whole folder.
    """

    name: str
    root: AnyPath
    chosen: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Sources:
    """Sources in their order, and what was named but is not there, with the reason."""

    found: tuple[Source, ...]
    missing: dict[str, str] = field(default_factory=dict)


def find_sources(inputs: Sequence[str]) -> Sources:
    """Resolve what the user wrote.

    Args:
        inputs: folders, files, or patterns with braces (`{00000..00099}`) and globs (`*`, and
            `?`, `[…]` where they are local), each a path or a URI, each maybe as `NAME=…`.

    Raises:
        InputError: an input is not there, a pattern matches nothing, or two share a name.
        ConfigError: the braces of a pattern name too many files.
    """
    found: dict[str, Source] = {}
    missing: dict[str, str] = {}
    for given in inputs:
        for source in _resolve(given, missing):
            if source.name in found:
                rest = uri.split_name(given)[1]
                raise InputError(
                    f"two inputs are called '{source.name}'; name one: --input other={rest}"
                )
            found[source.name] = source
    return Sources(tuple(found.values()), missing)


def pictures_below(folder: AnyPath) -> list[str]:
    """Names of the image files below a folder, relative to it, sorted.

    Pictures of formats that are not read are counted in a warning, so that nobody misses them.
    """
    found, others = [], Counter[str]()
    for path in folder.rglob("*"):
        name = uri.below(path, folder)
        if images.is_picture(name):
            found += [name] if path.is_file() else []
        elif (suffix := path.suffix.lower()) in images.OTHER_SUFFIXES:
            others[suffix] += 1
    if others:
        told = ", ".join(f"{count} {suffix}" for suffix, count in sorted(others.items()))
        log.warning("%s: not read: %s; save them as .jpg or .png", folder, told)
    return sorted(found)


def absolute(given: str) -> str:
    """An input as a process with another working directory has to name it."""
    name, rest = uri.split_name(given)
    if "://" in rest:
        return given
    path = Path(rest).resolve()
    return f"{name}={path}" if name else str(path)


def _resolve(given: str, missing: dict[str, str]) -> list[Source]:
    name, rest = uri.split_name(given)
    if _has_magic(rest) and not Path(rest).exists():
        return _resolve_pattern(name, rest, missing)
    path = uri.at(rest)
    with uri.reachable(path):
        if not path.exists():
            raise InputError(
                f"{path}: no such folder or file; --input takes a folder, a .tar, .parquet or "
                ".txt file, or a pattern of them"
            )
        return [_of_file(name, path) if _is_file(path) else _of_folder(name, path)]


def _of_folder(name: str | None, path: AnyPath) -> Source:
    return Source(name or uri.name_of(path), path)


def _of_file(name: str | None, path: AnyPath) -> Source:
    stem = path.stem if path.suffix in SHARD_SUFFIXES else path.name
    return Source(name or stem, path.parent, (path.name,))


def _resolve_pattern(name: str | None, pattern: str, missing: dict[str, str]) -> list[Source]:
    base = _base(pattern)
    with uri.reachable(base):
        paths = dict.fromkeys(_matches(pattern, base, missing))  # overlapping patterns name it once
        sources = list(_group(name or uri.name_of(base), base, paths))
    if not sources:
        raise InputError(f"{pattern}: matches nothing; expected folders, or .tar files, images, …")
    return sources


def _group(name: str, base: AnyPath, paths: Iterable[AnyPath]) -> Iterator[Source]:
    folders: list[AnyPath] = []
    files: dict[AnyPath, list[str]] = {}
    for path in paths:
        if _is_file(path):
            files.setdefault(path.parent, []).append(path.name)
        else:
            folders.append(path)
    for folder in folders:
        yield Source(_below(name, base, folder), folder)
    for folder, names in files.items():
        yield Source(_below(name, base, folder), folder, tuple(sorted(names)))


def _below(name: str, base: AnyPath, folder: AnyPath) -> str:
    inner = uri.below(folder, base)
    return f"{name}/{inner}" if inner else name


def _matches(pattern: str, base: AnyPath, missing: dict[str, str]) -> Iterator[AnyPath]:
    named: list[AnyPath] = []
    for text in _expand(pattern):
        if _has_magic(text):
            inner = text.removeprefix(_base_text(text)).lstrip("/")
            matched: list[AnyPath] = list(_base(text).glob(inner))
            yield from sorted(matched, key=str)
        else:
            named.append(uri.at(text))
    with ThreadPoolExecutor(LOOKUPS) as pool:
        for path, exists in zip(named, pool.map(lambda path: path.exists(), named), strict=True):
            if exists:
                yield path
            else:
                missing[str(path)] = "no such file, though the pattern names it"


def _expand(pattern: str) -> list[str]:
    try:
        return list(bracex.expand(pattern, limit=MAX_FILES))
    except bracex.ExpansionLimitException:
        raise ConfigError(
            f"{pattern}: its braces name more than {MAX_FILES} files; name the folder instead"
        ) from None


def _has_magic(text: str) -> bool:
    magic = _REMOTE_MAGIC if "://" in text else _LOCAL_MAGIC
    return magic.search(text) is not None


def _base(pattern: str) -> AnyPath:
    """The folder before the first part of a pattern that varies."""
    return uri.at(_base_text(pattern) or ".")


def _base_text(pattern: str) -> str:
    magic = _REMOTE_MAGIC if "://" in pattern else _LOCAL_MAGIC
    found = magic.search(pattern)
    fixed = pattern[: found.start()] if found else pattern
    return fixed.rpartition("/")[0] or ("/" if fixed.startswith("/") else "")


def _is_file(path: AnyPath) -> bool:
    # By its name where that tells: asking costs a request where files are remote.
    known = path.suffix.lower() in SHARD_SUFFIXES | images.SUFFIXES
    return (known and not _is_plain_folder(path)) or not path.is_dir()


def _is_plain_folder(path: AnyPath) -> bool:
    """A local folder called like an image or a text; one called like a tar is a broken tar."""
    return uri.is_local(path) and path.suffix != ".tar" and path.is_dir()
