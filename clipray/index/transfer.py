"""Files of an index on their way between its folder and a store.

Each is called the same in both. Which way they go is not known here.
"""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm
from upath import UPath

from clipray.errors import DamagedError
from clipray.index.manifest import IndexFolder
from clipray.manifest import FileRecord

AT_ONCE = 4  # files on their way

File = tuple[Path, FileRecord]


def move_files(
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

        each_file(chosen, one)


def each_file(files: Iterable[File], work: Callable[[Path, FileRecord], None]) -> None:
    """Several files at once; the first error ends it."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for _ in pool.map(lambda file: work(*file), files):
            pass
    finally:
        pool.shutdown(cancel_futures=True)


def in_store(folder: IndexFolder, store: UPath, path: Path) -> UPath:
    """What a file of the folder is in the store."""
    return store / name_in(folder, path)


def name_in(folder: IndexFolder, path: Path) -> str:
    """What a file is called inside the folder; a manifest must not name one outside."""
    if not path.is_relative_to(folder.root) or ".." in path.relative_to(folder.root).parts:
        raise DamagedError(f"{path}: named by a manifest, and lies outside of {folder.root}")
    return path.relative_to(folder.root).as_posix()
