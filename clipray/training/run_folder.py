"""The folder of a run, or its URI: configuration, environment, metrics, checkpoints.

A run that is started again goes on in its folder, if it is the same run. What a configuration
means is not known here.
"""

import json
import os
import platform
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import yaml

from clipray import storage, uri
from clipray.errors import ConfigError, DamagedError, OutputError
from clipray.uri import AnyPath

MAX_FILE_BYTES = 16 << 20
PACKAGES = ("clipray", "torch", "torchvision", "open_clip_torch", "ray", "numpy", "pillow")


class RunFolder:
    """File names of a run."""

    def __init__(self, root: AnyPath) -> None:
        self.root = root
        self.config = root / "train.yaml"
        self.environment = root / "environment.json"
        self.checkpoints = root / "checkpoints"
        self.logs = (root / "metrics.jsonl", root / "tensorboard")

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other commands out of a local folder.

        Raises:
            OutputError: one is at work there.
        """
        if not uri.is_local(self.root):
            yield
            return
        with ExitStack() as stack:
            try:
                stack.enter_context(storage.locked(self.root / ".lock"))
            except BlockingIOError:
                raise OutputError(f"{self.root}: another command is training there") from None
            yield

    def begin(self, tree: Mapping[str, Any], free: Sequence[str]) -> None:
        """Make the folder, or find that it holds the same run.

        Args:
            tree: configuration.
            free: keys that may differ, as they do not decide what comes out.

        Raises:
            ConfigError: the folder holds a run of another configuration, naming the keys.
            InputError: it cannot be written.
        """
        with uri.reachable(self.root, "written"):
            there = self._read(self.config)
            if there is not None:
                self._require_same(yaml.safe_load(there), tree, free)
            self._write(self.config, yaml.safe_dump(dict(tree), sort_keys=False))

    def note_environment(self, world: int, device: str) -> None:
        """Write down what the run runs on."""
        told = {
            "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "workers": world,
            "device": device,
            "host": socket.gethostname(),
            "cpus": os.cpu_count(),
            "platform": platform.platform(),
            "python": platform.python_version(),
            "cuda": torch.version.cuda,
            "packages": {name: _version(name) for name in PACKAGES},
        }
        self._write(self.environment, json.dumps(told, indent=1))

    @contextmanager
    def local(self) -> Iterator[Path]:
        """A local folder for logs: this one, or a copy of the logs in the store."""
        if uri.is_local(self.root):
            storage.make_folder(self.root)
            yield self.root
            return
        with tempfile.TemporaryDirectory(prefix="clipray-") as scratch:
            with suppress(FileNotFoundError):
                self.copy_metrics(Path(scratch) / self.logs[0].name)
            yield Path(scratch)

    def send_logs(self, local: Path) -> None:
        """Copy the logs to the store, where there is one.

        Raises:
            OSError: when they cannot be sent.
        """
        if uri.is_local(self.root):
            return
        for path in sorted(local.rglob("*")):
            if path.is_file():
                uri.send(path, self.root / path.relative_to(local).as_posix(), lambda _: None)

    def copy_metrics(self, target: Path) -> None:
        """Copy `metrics.jsonl` to a local file."""
        with uri.fetched(self.logs[0]) as path:
            shutil.copyfile(path, target)

    def _require_same(self, there: Any, tree: Mapping[str, Any], free: Sequence[str]) -> None:
        if not isinstance(there, dict):
            raise DamagedError(f"{self.config}: not the configuration of a run; remove {self.root}")
        if other := differences(there, tree, free):
            raise ConfigError(
                f"{self.root}: holds another run ({'; '.join(other)}); choose another --run, or "
                "remove it"
            )

    def _read(self, path: AnyPath) -> str | None:
        try:
            return uri.read(path, 0, MAX_FILE_BYTES).decode("utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _write(self, path: AnyPath, text: str) -> None:
        if uri.is_local(path):
            storage.make_folder(path.parent)
            storage.write_file(path, text.encode())
        else:
            path.fs.pipe_file(path.path, text.encode())


def differences(
    there: Mapping[str, Any], tree: Mapping[str, Any], free: Sequence[str]
) -> list[str]:
    """`key old, now new`, for each key of two configurations that differs and is not free to."""
    old, new = dict(_leaves(there)), dict(_leaves(tree))
    return [
        f"{key} {old.get(key)}, now {new.get(key)}"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not key.startswith(tuple(free))
    ]


def _leaves(tree: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _leaves(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
