"""A version of an index in a store, and the folder on this machine that it is read through.

An index changes in a local or shared folder only; what a store has of it is a copy. Files never
change and have names of their own, so one that is there with its size is not copied again, and the
manifest is the last to come, so a copy that was cut off is no version yet and is simply made again.
"""

import hashlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm
from upath import UPath

from clipray import storage, uri
from clipray.errors import DamagedError, InputError, OutputError
from clipray.index.manifest import IndexFolder, IndexManifest, checked
from clipray.manifest import MAX_MANIFEST_BYTES, FileRecord, decode_tree

log = logging.getLogger(__name__)

AT_ONCE = 4  # files on their way

File = tuple[Path, FileRecord]


@dataclass(frozen=True, slots=True)
class Published:
    """What a copy to a store took.

    Attributes:
        version: that is there now.
        sent: files that were sent, without the manifest.
        bytes: of those.
        there: files that were there already.
    """

    version: int
    sent: int
    bytes: int
    there: int


class Opened(NamedTuple):
    """A version in a folder on this machine, and whether its checksums have been compared."""

    folder: IndexFolder
    manifest: IndexManifest
    verified: bool


def publish(folder: IndexFolder, store: UPath) -> Published:
    """Copy the newest version to a store.

    Raises:
        InputError: no index here, one whose shards lie on other nodes, or a store that cannot be
            written.
        DamagedError: a file that is missing or changed here.
        OutputError: the store has another version under this number.
    """
    manifest = folder.read()
    if manifest.placement == "node":
        raise InputError(f"{folder.root}: its shards lie on their nodes, not in this folder")
    files = list(folder.all_files(manifest))
    with folder.writing(), uri.reachable(store, "written"):
        there = uri.sizes(store)
        common = [number for number in folder.versions() if _version_name(folder, number) in there]
        for number in common[-1:]:
            _require_same(folder, store, number)
        missing = _missing(folder, files, there)
        _send(folder, store, missing)
        lost = _missing(folder, missing, uri.sizes(store)) if missing else []
        if lost:
            raise OutputError(f"{_there(folder, store, lost[0][0])}: was sent, but is not there")
        _commit(folder, store, manifest.version)
    size = sum(record.bytes for _, record in missing)
    return Published(manifest.version, len(missing), size, len(files) - len(missing))


def read(given: str | Path, version: int | None = None) -> IndexManifest:
    """A version of an index, the newest by default, without its files.

    Args:
        given: an index folder, or the URI of a published one.
        version: its number.

    Raises:
        InputError: no such index or version, or a store that cannot be read.
        DamagedError: its manifest was changed.
    """
    place = _place(given)
    if uri.is_local(place):
        return IndexFolder(Path(place)).read(version)
    return _described(_cached(place), place, version)[0]


def newest(given: str | Path) -> int:
    """The highest version number of an index folder, or of a published one.

    Raises:
        InputError: no index there, or a store that cannot be read.
    """
    place = _place(given)
    if not uri.is_local(place):
        return _newest(_cached(place), place)
    versions = IndexFolder(Path(place)).versions()
    if not versions:
        raise InputError(f"{place}: no index folder any more")
    return versions[-1]


def opened(
    given: str | Path,
    version: int | None = None,
    *,
    verify: bool = True,
    partial: bool = False,
    shards: Collection[int] | None = None,
) -> Opened:
    """A version of an index, the newest by default, in a folder on this machine.

    Args:
        given: an index folder, which is what is returned, or the URI of a published one, whose
            files are fetched unless they are here.
        version: its number.
        verify: compare the files that were here with their checksums and fetch damaged ones again;
            what is fetched is always compared.
        partial: go on where files of the store are damaged; they are missing then.
        shards: numbers of those whose files are wanted, all by default.

    Raises:
        InputError: no such index or version, or a store that cannot be read.
        DamagedError: naming what is wrong in the store or the folder.
    """
    place = _place(given)
    if uri.is_local(place):
        folder = IndexFolder(Path(place))
        return Opened(folder, folder.read(version), verified=False)
    return _fetched(place, version, verify=verify, partial=partial, shards=shards)


def cache_root() -> Path:
    """Where copies of published indices are kept: `$CLIPRAY_CACHE`, or in the home folder."""
    return Path(os.environ.get("CLIPRAY_CACHE") or "~/.cache/clipray").expanduser().resolve()


def _place(given: str | Path) -> Path | UPath:
    return uri.at(given) if isinstance(given, str) and "://" in given else Path(given)


def _cached(store: UPath) -> IndexFolder:
    return IndexFolder(cache_root() / hashlib.sha256(str(store).encode()).hexdigest()[:16])


def _fetched(
    store: UPath,
    version: int | None,
    *,
    verify: bool,
    partial: bool,
    shards: Collection[int] | None,
) -> Opened:
    folder = _cached(store)
    manifest, data = _described(folder, store, version)
    wanted = _part(manifest, shards)
    with folder.writing():
        files = [file for file in folder.all_files(wanted) if _name(folder, file[0])]
        _fetch(folder, store, _absent(files, verify=verify), partial=partial)
        _keep(folder.version_file(manifest.version), data)
    return Opened(folder, manifest, verified=verify)


def _described(
    folder: IndexFolder, store: UPath, version: int | None
) -> tuple[IndexManifest, bytes]:
    number = _newest(folder, store) if version is None else version
    path = _there(folder, store, folder.version_file(number))
    data = _read_manifest(path)
    if data is None:
        raise InputError(f"{store}: has no version {number}")
    return checked(decode_tree(data, path), number, path), data


def _part(manifest: IndexManifest, shards: Collection[int] | None) -> IndexManifest:
    if shards is None:
        return manifest
    kept = tuple(manifest.shards[number] for number in sorted(shards))
    return manifest.model_copy(update={"shards": kept})


def _send(folder: IndexFolder, store: UPath, files: Iterable[File]) -> None:
    def send(path: Path, record: FileRecord, told: Callable[[int], None]) -> None:
        record.verify(path)
        uri.send(path, _there(folder, store, path), told)

    _moved(files, send, "publish")


def _commit(folder: IndexFolder, store: UPath, version: int) -> None:
    """Write the manifest unless there is one; only the very same is no error."""
    path = folder.version_file(version)
    try:
        uri.create(_there(folder, store, path), path.read_bytes())
    except OSError as error:
        log.debug("%s: not created (%s)", store, error)
        if _version_name(folder, version) not in uri.sizes(store):
            raise
    _require_same(folder, store, version)


def _require_same(folder: IndexFolder, store: UPath, version: int) -> None:
    here = folder.version_file(version)
    there = _there(folder, store, here)
    if _read_manifest(there) != here.read_bytes():
        raise OutputError(f"{there}: is not the version {version} that {here} is; choose another")


def _fetch(
    folder: IndexFolder, store: UPath, files: Iterable[File], *, partial: bool = False
) -> None:
    def fetch(path: Path, record: FileRecord, told: Callable[[int], None]) -> None:
        there = _there(folder, store, path)
        try:
            storage.stream_file(path, lambda sink: _copy(there, record, sink, told))
        except DamagedError as error:
            if not partial:
                raise
            log.warning("left out: %s", error)

    _moved(files, fetch, "fetch")


def _copy(
    there: UPath, record: FileRecord, sink: storage.Sink, told: Callable[[int], None]
) -> None:
    pieces = uri.chunks(there, record.bytes)
    while piece := _next(pieces, there):
        sink.write(piece)
        told(sink.size)
    if sink.size != record.bytes:
        raise DamagedError(f"{there}: has {sink.size} bytes, its manifest says {record.bytes}")
    if sink.sha256 != record.sha256:
        raise DamagedError(f"{there}: its sha256 is not the one of its manifest; it was changed")


def _next(pieces: Any, there: UPath) -> bytes:
    """What comes next, nothing at the end; errors of the store are told apart from the disk's."""
    with uri.reachable(there):
        try:
            return bytes(next(pieces, b""))
        except FileNotFoundError:
            raise DamagedError(f"{there}: missing; publish the index again") from None


def _keep(path: Path, data: bytes) -> None:
    """Have a manifest as the store has it, also where it was published anew."""
    if not path.exists() or path.read_bytes() != data:
        storage.make_folder(path.parent)
        storage.write_file(path, data)


def _absent(files: Iterable[File], *, verify: bool) -> list[File]:
    """Files that are not here as they should be; those that are damaged are removed."""
    found: list[File] = []

    def look(path: Path, record: FileRecord) -> None:
        try:
            record.verify(path) if verify else record.require(path)
        except DamagedError:
            path.unlink(missing_ok=True)
            found.append((path, record))

    _each(files, look)
    return found


def _moved(
    files: Iterable[File],
    move: Callable[[Path, FileRecord, Callable[[int], None]], None],
    bar: str,
) -> None:
    """Copy files, several at once, with a progress bar over their bytes.

    Args:
        files: to copy.
        move: copies one, and tells how many of its bytes are done.
        bar: name of the bar.
    """
    chosen = list(files)
    if not chosen:
        return
    total = sum(record.bytes for _, record in chosen)
    with tqdm(total=total, unit="B", unit_scale=True, desc=bar) as shown:

        def one(path: Path, record: FileRecord) -> None:
            done = 0

            def told(count: int) -> None:
                nonlocal done
                shown.update(count - done)
                done = count

            move(path, record, told)
            told(record.bytes)

        _each(chosen, one)


def _each(files: Iterable[File], work: Callable[[Path, FileRecord], None]) -> None:
    """Several files at once; the first error ends it."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for _ in pool.map(lambda file: work(*file), files):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def _missing(
    folder: IndexFolder, files: Iterable[File], there: Mapping[str, int | None]
) -> list[File]:
    return [
        (path, record) for path, record in files if there.get(_name(folder, path)) != record.bytes
    ]


def _newest(folder: IndexFolder, store: UPath) -> int:
    with uri.reachable(store):
        try:
            names = [name for name, _ in uri.files(store / folder.manifests.name)]
        except FileNotFoundError:
            names = []
    stems = (name.removesuffix(".json") for name in names if name.endswith(".json"))
    versions = [int(stem) for stem in stems if stem.isdecimal()]
    if not versions:
        raise InputError(f"{store}: no index there; `clipray index publish` copies one")
    return max(versions)


def _read_manifest(path: UPath) -> bytes | None:
    with uri.reachable(path):
        try:
            return uri.read(path, 0, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None


def _version_name(folder: IndexFolder, version: int) -> str:
    return _name(folder, folder.version_file(version))


def _there(folder: IndexFolder, store: UPath, path: Path) -> UPath:
    """What a file of the folder is in the store."""
    return store / _name(folder, path)


def _name(folder: IndexFolder, path: Path) -> str:
    """What a file is called inside the folder; a manifest must not name one outside."""
    if not path.is_relative_to(folder.root) or ".." in path.relative_to(folder.root).parts:
        raise DamagedError(f"{path}: named by a manifest, and lies outside of {folder.root}")
    return path.relative_to(folder.root).as_posix()
