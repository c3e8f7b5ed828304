"""What a power cut may leave of a folder: a model of what is on the disk and what is not yet.

A file's content is on the disk since its last fsync, a name since the last fsync of its folder.
The rest may survive or not. Which calls made the changes is not known here.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


class Disk:
    """A folder as it is and as it was flushed, which at first is the same.

    It is looked at, not deduced from the calls. A file or folder is told by its inode, and held
    open: so it can be read after its name is gone, and its number is not given away.
    """

    def __init__(self, path):
        self.path = path
        self._nodes = {}
        self._root = self._node(path)
        self._pending = []  # by call, the changes of names that no fsync has covered
        self.observe()
        for node in self._nodes.values():
            node.sync()
        self._pending.clear()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for node in self._nodes.values():
            os.close(node.descriptor)

    def observe(self):
        changes = list(self._changes(self.path, self._root))
        self._pending += [changes] if changes else []
        for file in self._of(_File):
            file.observe()

    def sync(self, descriptor):
        node = self._nodes[os.fstat(descriptor).st_ino]
        node.sync()
        self._pending = [
            [change for change in changes if change[0] is not node] for changes in self._pending
        ]

    def tree(self, loss):
        """Content by path, None of a folder; names that one call changed share their fate."""
        names = {folder: dict(folder.durable) for folder in self._of(_Folder)}
        for changes in self._pending:
            if loss.keeps():
                for folder, name, node in changes:
                    names[folder][name] = node
        contents = {file: loss.content(file.durable, file.live) for file in self._of(_File)}
        return dict(_walk(self._root, Path(), names, contents))

    def _changes(self, path, folder):
        found = {entry.name: self._node(entry) for entry in path.iterdir()}
        before, folder.live = folder.live, found
        for name in sorted(before.keys() | found.keys()):
            node = found.get(name)
            if node is not before.get(name):
                yield folder, name, node
            if isinstance(node, _Folder):
                yield from self._changes(path / name, node)

    def _node(self, path):
        inode = path.lstat().st_ino
        if inode not in self._nodes:
            kind = _Folder if path.is_dir() else _File
            self._nodes[inode] = kind(os.open(path, os.O_RDONLY))
        return self._nodes[inode]

    def _of(self, kind):
        return [node for node in self._nodes.values() if isinstance(node, kind)]


def _walk(folder, path, names, contents):
    for name, node in names[folder].items():
        if isinstance(node, _Folder):
            yield path / name, None
            yield from _walk(node, path / name, names, contents)
        elif node is not None:
            yield path / name, contents[node]


class _File:
    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.live = self.durable = b""

    def observe(self):
        found = os.pread(self.descriptor, os.fstat(self.descriptor).st_size, 0)
        if found != self.live:  # else the trees share it
            self.live = found

    def sync(self):
        self.durable = self.live


class _Folder:
    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.live, self.durable = {}, {}  # files and folders by name

    def sync(self):
        self.durable = dict(self.live)


@dataclass(frozen=True)
class Loss:
    """What is lost of what no fsync has covered."""

    name: str
    keeps: Callable[[], bool]  # the names that a call changed
    content: Callable[[bytes, bytes], bytes]  # of a file, from what was flushed and what it held


def random_loss(seed, step):
    rng = random.Random(f"{seed} {step}")
    return Loss(f"half, seed {seed}", lambda: rng.random() < 0.5, _torn(rng))


def _flushed(durable, live):
    return durable


def _held(durable, live):
    return live


def _cut(durable, live):
    return durable if live.startswith(durable) else b""


def _torn(rng):
    def content(durable, live):
        kept = _cut(durable, live)
        rest = live[len(kept) :]
        part = rest[: rng.randrange(len(rest) + 1)]
        return rng.choice([durable, live, kept, kept + part, kept + bytes(len(rest))])

    return content


LOSSES = (
    Loss("names and content", lambda: False, _flushed),
    Loss("content", lambda: True, _cut),
    Loss("names", lambda: False, _held),
)
