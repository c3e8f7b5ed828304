"""A program that works on an index beside others, and the side of it that a test holds.

Orders and answers are lines of JSON. A write is answered with the versions that it committed, so
that the test knows in which order the writes of all processes came.
"""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np

from clipray.embeddings import Parts
from clipray.errors import ClipRayError
from clipray.index import Index, compaction
from clipray.index.appending import append_parts
from clipray.index.deletions import Doomed
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.table import row_ids
from clipray.index.upkeep import collect_garbage
from clipray.index.workers import Here
from tests.careless import without_fsync
from tests.handmade import random_halves, write_embeddings

DIM = 8
MOST_SECONDS = 60  # until an answer
SHARED = tuple(f"shared/{n}" for n in range(4))  # come and go together
AT_WORK, GO = "at work", ""


class Peer:
    """A process of its own."""

    def __init__(self, root):
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, root],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[2],
            env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"},
        )

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def order(self, *words):
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()

    def answer(self):
        watch = threading.Timer(MOST_SECONDS, self._process.kill)
        watch.start()
        line = self._process.stdout.readline()
        watch.cancel()
        assert line, "the process ended"
        return json.loads(line)

    def kill(self):
        """SIGKILL: it cannot tidy up."""
        self._process.kill()
        self._process.communicate()


def embed(root, keys, stamp):
    """Embeddings that a number decides, which is also a column; returns what `content` does."""
    vectors = random_halves(len(keys), DIM, stamp)
    with without_fsync():
        write_embeddings(root, [(keys, vectors)], {0: {"stamp": [stamp] * len(keys)}})
    return {key: (stamp, vector.tobytes()) for key, vector in zip(keys, vectors, strict=True)}


def content(root, version=None):
    """Stamp and vector of every key of a version that is whole."""
    index = Index.open(root, version)
    rows = {
        key: (stamp, index.find(key).astype(np.float16).tobytes())
        for key, stamp in index.column("stamp").items()
    }
    assert len(rows) == len(index) == index.manifest.rows
    (found,) = index.search(np.ones((1, DIM)), len(rows) + 1)
    assert {match.key for match in found} == rows.keys()
    stamps = [rows[key][0] for key in SHARED if key in rows]
    assert len(stamps) in {0, len(SHARED)}
    assert len(set(stamps)) <= 1  # else it is made of two versions
    return rows


class _Folder(IndexFolder):
    """Remembers what was committed through it."""

    def __init__(self, root):
        super().__init__(root)
        self.mine = []

    def commit(self, manifest):
        done = super().commit(manifest)
        if done:
            self.mine.append(manifest.version)
        return done


class _Halting(Here):
    """Says when it is in the middle of its work, and waits there for a word."""

    def run(self, function, calls, on=None):
        done = list(super().run(function, calls, on))
        if function.__name__ == "build_segment":
            self._halt()
        return iter(done)

    def everywhere(self, function, arguments):
        if function.__name__ == "sweep":
            self._halt()
        return super().everywhere(function, arguments)

    def _halt(self):
        _say(AT_WORK)
        sys.stdin.readline()


def _append(folder, workers, embeddings):
    append_parts(folder, Parts.open(Path(embeddings)), workers)


def _remove(folder, workers, keys):
    remove_rows(folder, Doomed(ids=row_ids(keys)), workers)


def _compact(folder, workers, full):
    compaction.compact(folder, workers, full=full)


WRITES = {"append": _append, "remove": _remove, "compact": _compact}


def _write(root, verb, *arguments, halting=False):
    folder = _Folder(root)
    with folder.writing():
        WRITES[verb](folder, (_Halting if halting else Here)(root), *arguments)
    return folder.mine


def _halting(root, verb, *arguments):
    if verb == "gc":
        return collect_garbage(IndexFolder(root), 1, _Halting(root))
    return _write(root, verb, *arguments, halting=True)


def _watch(root, until):
    """Open the newest version over and over, until a file is there."""
    looks = 0
    while not Path(until).exists():
        content(root)
        looks += 1
    return looks


def _say(answer):
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def main():
    root = Path(sys.argv[1])
    verbs = {"watch": _watch, "halting": _halting}
    with without_fsync():
        for line in sys.stdin:
            verb, *arguments = json.loads(line)
            try:
                if verb in verbs:
                    _say(verbs[verb](root, *arguments))
                else:
                    _say(_write(root, verb, *arguments))
            except ClipRayError as error:
                _say(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
