"""Looking after an index folder: what is in it, whether it is whole, and what may go.

`gc` deletes the manifests of old versions first and then what no version names, so at no moment
does a version stand whose files are gone.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

from clipray import storage
from clipray.errors import DamagedError, InputError, OutputError
from clipray.index.manifest import COMMIT_TRIES, IndexFolder, IndexManifest, ShardRecord
from clipray.index.workers import Workers
from clipray.manifest import FileRecord

SHARED = -1  # in place of the number of a shard


def damage_of(root: Path, shard: ShardRecord) -> list[str]:
    """What is wrong with the files of a shard; each line names one."""
    return _told(root, shard, FileRecord.verify)


def missing_of(root: Path, shard: ShardRecord) -> list[str]:
    """Files of a shard that are missing or cut; they are not read."""
    return _told(root, shard, FileRecord.require)


def all_damage(
    folder: IndexFolder, manifest: IndexManifest, workers: Workers
) -> dict[int, list[str]]:
    """What is wrong with a version, by shard; `SHARED` stands for what all shards share."""
    found: dict[int, list[str]] = {}
    if manifest.codec:
        try:
            manifest.codec.file.verify(folder.codecs / manifest.codec.name)
        except DamagedError as error:
            found[SHARED] = [f"{error} (searching goes on without it, appending does not)"]
    calls = [(shard,) for shard in manifest.shards]
    read = workers.run(damage_of, calls, [shard.node for shard in manifest.shards])
    found |= {each.call: each.result for each in read if each.result}
    return dict(sorted(found.items()))


def roll_back(folder: IndexFolder, version: int) -> IndexManifest:
    """Commit an old version again, as the newest; a damaged newest one does not matter.

    Raises:
        InputError: no such version.
        DamagedError: its manifest is torn or changed.
        OutputError: files of it are gone, or other writers were first every time.
    """
    for _ in range(COMMIT_TRIES):
        old = folder.read(version)
        newest = folder.versions()[-1]
        changes = {"version": newest + 1, "parent": version, "verb": "rollback"}
        again = old.model_copy(update={**changes, "created": datetime.now(UTC)})
        if folder.commit(again):
            return again
    raise OutputError(f"{folder.root}: {COMMIT_TRIES} times another writer was first; try later")


def collect_garbage(folder: IndexFolder, keep: int, workers: Workers) -> int:
    """Delete all but the newest `keep` versions and what they do not need; returns bytes freed.

    Raises:
        InputError: no index here.
        DamagedError: a version that is to be kept cannot be read.
        OutputError: while a writer is at work.
    """
    if not folder.versions():
        raise InputError(f"{folder.root}: no index folder; `clipray index build` writes one")
    try:
        with storage.locked(folder.lock):
            kept = [folder.read(version) for version in folder.versions()[-keep:]]
            freed = _drop_versions(folder, kept)
            swept = workers.everywhere(sweep, (sorted(_names(kept)),))
            return freed + sum(map(int, swept.values()))
    except BlockingIOError:
        raise OutputError(
            f"{folder.root}: a writer, or another `gc`, is at work; try again when it is done"
        ) from None


def sweep(root: Path, needed: Iterable[str]) -> int:
    """Delete segments, bitmaps and codecs that are not `needed`; returns bytes freed."""
    folder, names = IndexFolder(root), set(needed)
    freed = 0
    for path in _kept_in(folder):
        if path.name not in names:
            freed += _remove(path)
    freed += _remove(folder.building)
    return freed


def _told(root: Path, shard: ShardRecord, check: Callable[[FileRecord, Path], None]) -> list[str]:
    folder = IndexFolder(root)
    found = []
    for path, record in (file for segment in shard.segments for file in folder.files(segment)):
        try:
            check(record, path)
        except DamagedError as error:
            found.append(str(error))
    return found


def _names(kept: Iterable[IndexManifest]) -> Iterator[str]:
    """What versions need: names of segments, bitmaps and codecs."""
    for manifest in kept:
        if manifest.codec:
            yield manifest.codec.name
        for segment in manifest.segments:
            yield segment.id
            if segment.deletions:
                yield segment.deletions.name


def _drop_versions(folder: IndexFolder, kept: Iterable[IndexManifest]) -> int:
    numbers = {manifest.version for manifest in kept}
    freed = sum(
        _remove(folder.version_file(version))
        for version in folder.versions()
        if version not in numbers
    )
    storage.sync_folder(folder.manifests)
    return freed


def _kept_in(folder: IndexFolder) -> Iterator[Path]:
    for parent in (folder.segments, folder.deletions, folder.codecs):
        yield from sorted(parent.iterdir()) if parent.is_dir() else ()
    for parent in (folder.manifests, folder.root):
        rests = parent.iterdir() if parent.is_dir() else ()
        yield from (path for path in rests if _is_rest(path) and path != folder.lock)


def _is_rest(path: Path) -> bool:
    return storage.is_staging(path) and re.search(r"\.[0-9a-f]{12}\.tmp$", path.name) is not None


def _remove(path: Path) -> int:
    if path.is_dir():
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        storage.remove_folder(path)
    else:
        size = path.stat().st_size if path.exists() else 0
        path.unlink(missing_ok=True)
    return size
