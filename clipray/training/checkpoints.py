"""Checkpoints of a run: whole folders, each with a manifest that comes last.

A checkpoint is a model folder with the state of training beside it. It is found on the disk or in
the store, not in anybody's memory, so whoever starts next goes on from the newest that is whole.
What the state means is not known here.
"""

import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field
from upath import UPath

from clipray import storage, uri
from clipray.config import Config
from clipray.errors import DamagedError
from clipray.manifest import (
    MAX_MANIFEST_BYTES,
    FileRecord,
    decode_tree,
    encode_json,
    parse_tree,
    write_json,
)
from clipray.uri import AnyPath

log = logging.getLogger(__name__)

MANIFEST = "checkpoint.json"

_NAME = re.compile(r"step-(\d{8,})")


class CheckpointConfig(Config):
    """When checkpoints are written, and which stay."""

    every_minutes: float = Field(10, gt=0, description="write one after so many minutes")
    every_steps: int | None = Field(None, ge=1, description="write one after so many steps")
    every_epochs: int | None = Field(None, ge=1, description="write one after so many epochs")
    keep: int = Field(2, ge=1, description="the newest ones that stay")
    best: str | None = Field(
        None,
        description="metric of the evaluation; the checkpoint with the best one stays as well, "
        "and becomes the result",
    )
    lower_is_better: bool = Field(False, description="the best metric is the lowest")


class CheckpointManifest(Config):
    """`checkpoint.json`.

    Attributes:
        step: steps that are done.
        data: digest of the samples that the order of batches was made for.
        metrics: of the last evaluation.
    """

    format: Literal[1] = 1
    step: int
    data: str
    files: dict[str, FileRecord]
    metrics: dict[str, float] = Field(default_factory=dict)


class Checkpoints:
    """The checkpoints in one folder, which may be a URI.

    Args:
        root: the folder, made when the first one is saved.
        config: which ones stay.
    """

    def __init__(self, root: AnyPath, config: CheckpointConfig) -> None:
        self._root, self._config = root, config

    def save(
        self, step: int, data: str, metrics: Mapping[str, float], fill: Callable[[Path], object]
    ) -> None:
        """Write a checkpoint, then drop those that need not stay.

        Args:
            step: steps that are done.
            data: digest of the samples.
            metrics: of the last evaluation.
            fill: writes the files of the checkpoint to the folder that it is given.

        Raises:
            OSError: when it cannot be written.
        """
        target = self._root / f"step-{step:08d}"
        if uri.is_local(target):
            _remove(target)  # a damaged one, else this step would not come again
            with storage.staged_folder(target) as staged:
                fill(staged)
                write_json(staged / MANIFEST, _manifest(staged, step, data, metrics))
        else:
            with tempfile.TemporaryDirectory(prefix="clipray-") as folder:
                fill(Path(folder))
                _send(Path(folder), target, _manifest(Path(folder), step, data, metrics))
        self._prune()

    @contextmanager
    def newest(self) -> Iterator[tuple[Path, CheckpointManifest] | None]:
        """The newest checkpoint that is whole, as a local folder; None where there is none."""
        with self._first(reversed(self._all())) as found:
            yield found

    @contextmanager
    def result(self) -> Iterator[tuple[Path, CheckpointManifest] | None]:
        """What a finished run gives: the best checkpoint where one is asked for, or the newest."""
        best = self._best()
        order = list(reversed(self._all()))
        with self._first(iter([best, *order] if best else order)) as found:
            yield found

    @contextmanager
    def _first(self, paths: Iterator[AnyPath]) -> Iterator[tuple[Path, CheckpointManifest] | None]:
        for path in paths:
            with tempfile.TemporaryDirectory(prefix="clipray-") as scratch:
                try:
                    manifest = _read(path)
                    folder = _at_hand(path, manifest, Path(scratch))
                except (DamagedError, OSError) as error:
                    log.warning("checkpoint %s is damaged, going further back: %s", path, error)
                    continue
                yield folder, manifest
                return
        yield None

    def _prune(self) -> None:
        """Drop old ones; those that are damaged count for nothing."""
        stay = set(self._all()[-self._config.keep :]) | {self._best()}
        for path in self._all():
            if path not in stay:
                _remove(path)

    def _best(self) -> AnyPath | None:
        name = self._config.best
        if name is None:
            return None
        valued = [
            (value, path) for path in self._all() if (value := _metric(path, name)) is not None
        ]
        pick = min if self._config.lower_is_better else max
        return pick(valued, key=lambda pair: pair[0])[1] if valued else None

    def _all(self) -> list[AnyPath]:
        """Oldest first."""
        if not uri.is_local(self._root):
            names = {name.split("/")[0] for name in uri.sizes(self._root)}
        elif self._root.is_dir():
            names = {path.name for path in self._root.iterdir()}
        else:
            names = set()
        steps = sorted((int(m[1]), name) for name in names if (m := _NAME.fullmatch(name)))
        return [self._root / name for _, name in steps]


def _manifest(
    folder: Path, step: int, data: str, metrics: Mapping[str, float]
) -> CheckpointManifest:
    files = {
        path.relative_to(folder).as_posix(): FileRecord(
            bytes=path.stat().st_size, sha256=storage.sha256_file(path)
        )
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    return CheckpointManifest(step=step, data=data, files=files, metrics=dict(metrics))


def _send(folder: Path, target: UPath, manifest: CheckpointManifest) -> None:
    _remove(target)
    for name in manifest.files:
        uri.send(folder / name, target / name, lambda _: None)
    uri.create(target / MANIFEST, encode_json(manifest.model_dump(mode="json")))


def _read(path: AnyPath) -> CheckpointManifest:
    file = path / MANIFEST
    try:
        data = uri.read(file, 0, MAX_MANIFEST_BYTES)
    except FileNotFoundError:
        raise DamagedError(f"{file}: missing, the checkpoint was not finished") from None
    return parse_tree(CheckpointManifest, decode_tree(data, file), file)


def _at_hand(path: AnyPath, manifest: CheckpointManifest, scratch: Path) -> Path:
    """A local folder with the files, each compared with its checksum."""
    folder = path if uri.is_local(path) else scratch
    for name, record in manifest.files.items():
        if ".." in Path(name).parts or Path(name).is_absolute():
            raise DamagedError(f"{path}: its manifest names {name}, outside of it")
        if not uri.is_local(path):
            with uri.fetched(path / name) as copy:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(copy, folder / name)
        record.verify(folder / name)
    return folder


def _metric(path: AnyPath, name: str) -> float | None:
    try:
        return _read(path).metrics.get(name)
    except (DamagedError, OSError):
        return None


def _remove(path: AnyPath) -> None:
    """The manifest goes first: what is left of it is no checkpoint."""
    if uri.is_local(path):
        if path.exists():
            gone = path.replace(storage.staging_path(path))
            storage.remove_folder(gone)
        return
    for name in sorted(uri.sizes(path), key=lambda name: name != MANIFEST):
        (path / name).unlink()
