"""A version of an index in a store, and the folder on this machine that it is read through.

What `publishing` has copied there never changes, so a file that is here with its checksum is not
fetched again.
"""

import hashlib
import logging
from collections.abc import Callable, Collection, Container, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from upath import UPath

from clipray import storage, uri
from clipray.errors import DamagedError, InputError
from clipray.index.manifest import IndexFolder, IndexManifest, checked
from clipray.index.transfer import File, each_file, in_store, move_files, name_in
from clipray.manifest import MAX_MANIFEST_BYTES, FileRecord, decode_tree

log = logging.getLogger(__name__)


class Opened(NamedTuple):
    """A version in a folder on this machine, and whether its checksums have been compared."""

    folder: IndexFolder
    manifest: IndexManifest
    verified: bool


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
    known: Container[Path] = (),
) -> Opened:
    """A version of an index, the newest by default, in a folder on this machine.

    Args:
        given: an index folder, which is what is returned, or the URI of a published one, whose
            files are fetched unless they are here.
        version: its number.
        verify: compare the files that were here with their checksums and fetch damaged ones again;
            what is fetched is always compared.
        partial: go on where files of the store are damaged; they are missing then.
        shards: numbers of those whose files are wanted, all by default; the codec, which no search
            needs, comes with all alone.
        known: files here that the caller has compared before.

    Raises:
        InputError: no such index or version, or a store that cannot be read.
        DamagedError: naming what is wrong in the store or the folder.
    """
    place = _place(given)
    if uri.is_local(place):
        folder = IndexFolder(Path(place))
        return Opened(folder, folder.read(version), verified=False)
    cached = _cached(place)
    manifest, data = _described(cached, place, version)
    with cached.writing():
        wanted = cached.all_files(_part(manifest, shards))
        files = [file for file in wanted if name_in(cached, file[0])]
        absent = _absent(files, lambda path: verify and path not in known)
        _fetch(cached, place, absent, partial=partial)
        _keep(cached.version_file(manifest.version), data)
    return Opened(cached, manifest, verified=verify)


def _place(given: str | Path) -> Path | UPath:
    return uri.at(given) if isinstance(given, str) and "://" in given else Path(given)


def _cached(store: UPath) -> IndexFolder:
    return IndexFolder(storage.cache_root() / hashlib.sha256(str(store).encode()).hexdigest()[:16])


def _described(
    folder: IndexFolder, store: UPath, version: int | None
) -> tuple[IndexManifest, bytes]:
    number = _newest(folder, store) if version is None else version
    path = in_store(folder, store, folder.version_file(number))
    data = read_manifest(path)
    if data is None:
        raise InputError(f"{store}: has no version {number}")
    return checked(decode_tree(data, path), number, path), data


def _part(manifest: IndexManifest, shards: Collection[int] | None) -> IndexManifest:
    if shards is None:
        return manifest
    kept = tuple(manifest.shards[number] for number in sorted(shards))
    return manifest.model_copy(update={"shards": kept, "codec": None})


def _fetch(
    folder: IndexFolder, store: UPath, files: Iterable[File], *, partial: bool = False
) -> None:
    def fetch(path: Path, record: FileRecord, told: Callable[[int], None]) -> None:
        there = in_store(folder, store, path)
        try:
            storage.stream_file(path, lambda sink: _copy(there, record, sink, told))
        except DamagedError as error:
            if not partial:
                raise
            log.warning("left out: %s", error)

    move_files(files, fetch, "fetch")


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


def _absent(files: Iterable[File], doubted: Callable[[Path], bool]) -> list[File]:
    """Files that are not here as they should be; those that are damaged are removed.

    Args:
        files: that should be here.
        doubted: whether the checksum of one is compared, not its size alone.
    """
    found: list[File] = []

    def look(path: Path, record: FileRecord) -> None:
        try:
            record.verify(path) if doubted(path) else record.require(path)
        except DamagedError:
            path.unlink(missing_ok=True)
            found.append((path, record))

    each_file(files, look)
    return found


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


def read_manifest(path: UPath) -> bytes | None:
    """The bytes of a manifest in a store, None where there is none."""
    with uri.reachable(path):
        try:
            return uri.read(path, 0, MAX_MANIFEST_BYTES)
        except FileNotFoundError:
            return None
