"""A copy of an index in a store.

An index changes in a local or shared folder only. Files never change and have names of their own,
so one that is there with its size is not copied again, and the manifest is the last to come, so a
copy that was cut off is no version yet and is simply made again.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from upath import UPath

from clipray import uri
from clipray.errors import InputError, OutputError
from clipray.index.manifest import IndexFolder
from clipray.index.store import read_manifest
from clipray.index.transfer import File, in_store, move_files, name_in
from clipray.manifest import FileRecord

log = logging.getLogger(__name__)


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
            raise OutputError(f"{in_store(folder, store, lost[0][0])}: was sent, but is not there")
        _commit(folder, store, manifest.version)
    size = sum(record.bytes for _, record in missing)
    return Published(manifest.version, len(missing), size, len(files) - len(missing))


def _send(folder: IndexFolder, store: UPath, files: Iterable[File]) -> None:
    def send(path: Path, record: FileRecord, told: Callable[[int], None]) -> None:
        record.verify(path)
        uri.send(path, in_store(folder, store, path), told)

    move_files(files, send, "publish")


def _commit(folder: IndexFolder, store: UPath, version: int) -> None:
    """Write the manifest unless there is one; only the very same is no error."""
    path = folder.version_file(version)
    try:
        uri.create(in_store(folder, store, path), path.read_bytes())
    except OSError as error:
        log.debug("%s: not created (%s)", store, error)
        if _version_name(folder, version) not in uri.sizes(store):
            raise
    _require_same(folder, store, version)


def _require_same(folder: IndexFolder, store: UPath, version: int) -> None:
    here = folder.version_file(version)
    there = in_store(folder, store, here)
    if read_manifest(there) != here.read_bytes():
        raise OutputError(f"{there}: is not the version {version} that {here} is; choose another")


def _missing(
    folder: IndexFolder, files: Iterable[File], there: Mapping[str, int | None]
) -> list[File]:
    return [
        (path, record) for path, record in files if there.get(name_in(folder, path)) != record.bytes
    ]


def _version_name(folder: IndexFolder, version: int) -> str:
    return name_in(folder, folder.version_file(version))
