"""A disk that is full at any step: the command says so, the old version stays, no rest counts."""

import errno
import os
import re
import shutil
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from clipray.cli import main
from clipray.errors import InputError
from clipray.index import Index, build
from clipray.index.history import IndexGcConfig, gc
from clipray.index.inspection import IndexInfoConfig, IndexVerifyConfig, info, verify
from clipray.index.manifest import IndexFolder
from clipray.index.workers import Here
from tests.calls import followed, place_of, syncs
from tests.careless import without_fsync
from tests.handmade import random_halves, write_embeddings
from tests.mounts import require_mounts, run_mounted, small_disk

DIM = 8
FULL = os.strerror(errno.ENOSPC)
TAKING = ("open", "write", "mkdir", "link", "replace", "rename")  # what may need room
EACH = 3  # of so many failures one is made up for, and what it left is collected
PAGE = 4096
PROGRESS = r"(index|append|compact):"

COMMANDS = {
    "build": ("build", "--embeddings", "first", "--method", "IVF2,Flat", "--shards", "2"),
    "append": ("append", "--embeddings", "more"),
    "remove": ("remove", "--key", "a/01", "--key", "b/1"),
    "compact": ("compact",),
    "cut anew": ("compact", "--shards", "3"),
    "rollback": ("rollback", "--version", "1"),
}


def run(root, name, *more):
    """Exit code and stderr of a command on the index below a folder."""
    words = [str(root / word) if word in {"first", "more"} else word for word in COMMANDS[name]]
    with ExitStack() as stack:
        # A build without Ray; the other commands do so little by themselves here.
        stack.enter_context(patch.object(build.cluster, "session", lambda **_: nullcontext()))
        stack.enter_context(patch.object(build.room, "wait"))
        stack.enter_context(patch.object(build, "RayTasks", lambda folder, _: Here(folder.root)))
        stack.enter_context(redirect_stdout(StringIO()))
        told = stack.enter_context(redirect_stderr(StringIO()))
        code = main(["index", *words, *more, "--index", str(index_of(root).root)])
    lines = re.split("[\r\n]+", told.getvalue())
    return code, "\n".join(line for line in lines if line and not re.match(PROGRESS, line))


def index_of(root):
    return IndexFolder(root / "disk" / "index")


class Full:
    """Whether the room that was left is used up."""

    def __init__(self, steps):
        self.steps = steps

    def take(self, *names):
        self.steps -= 1
        if self.steps < 0:
            raise OSError(errno.ENOSPC, FULL, *names)


@contextmanager
def full_after(steps, root):
    """A disk that fails every call below a folder that needs room, but for the first few."""
    full = Full(steps)

    def before(step):
        call, _, name = step.partition(" ")
        known = call == "open" and (root / name).exists()
        if call in TAKING and not known:
            full.take(*([] if call == "write" else [str(root / name)]))  # as Linux names them

    def sync(descriptor):
        if place_of(descriptor).is_relative_to(root):
            full.take()

    with followed(root, before), syncs(sync):
        yield full


def embed(root, keys, seed, dim=DIM):
    notes = {0: {"note": [f"note {key}" for key in keys]}}
    with without_fsync():
        write_embeddings(root, [(keys, random_halves(len(keys), dim, seed))], notes)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Embeddings and no index."""
    root = tmp_path_factory.mktemp("full") / "bare"
    embed(root / "first", [f"a/{n:02d}" for n in range(24)], 0)
    embed(root / "more", ["a/03", "b/0", "b/1"], 1)
    (root / "disk").mkdir()
    return root


@pytest.fixture(scope="module")
def grown(bare):
    """An index of several segments with dead rows."""
    root = bare.parent / "grown"
    shutil.copytree(bare, root)
    with without_fsync():
        assert run(root, "build") == (0, "")
        assert run(root, "append") == (0, "")
    return root


def seen(root):
    """What info, verify and a search say; None where there is no index."""
    folder = index_of(root)
    try:
        told = info(IndexInfoConfig(index=folder.root))
    except InputError:
        return None
    whole = verify(IndexVerifyConfig(index=folder.root))
    assert not whole.damage
    index = Index.open(folder.root)
    rows = {key: index.find(key).tobytes() for key in index.column("note")}
    found = index.search(np.eye(index.manifest.model.dim), len(rows) + 1)
    assert all({match.key for match in matches} == rows.keys() for matches in found)
    numbers = [(shard.rows, shard.dead, shard.segments) for shard in told.shards]
    return rows, numbers, told.versions, whole.files


def check_refused(root, outcome):
    """One line that names a file and says that the disk is full."""
    code, told = outcome
    assert code == 1, told
    assert re.fullmatch(rf"clipray: {re.escape(str(root / 'disk'))}\S*: {FULL}", told), told


def check_clean(root):
    """After `gc` there is nothing but what the newest version names."""
    folder = index_of(root)
    gc(IndexGcConfig(index=folder.root))
    manifest = folder.read()
    needed = {path for segment in manifest.segments for path, _ in folder.files(segment)}
    needed |= {folder.codecs / manifest.codec.name, folder.version_file(manifest.version)}
    needed |= {folder.root / "build.yaml", folder.lock}
    assert {path for path in folder.root.rglob("*") if path.is_file()} == needed
    assert {path.name for path in folder.segments.iterdir()} == {s.id for s in manifest.segments}


def states(start, root, name):
    """What may be seen: before a command, after it, and where its own compaction is to come."""
    shutil.copytree(start, root)
    with without_fsync():
        found = [seen(root)]
        if name in {"append", "remove"}:
            assert run(root, name, "--no-compact") == (0, "")
            found.append(seen(root))
            shutil.rmtree(root)
            shutil.copytree(start, root)
        assert run(root, name) == (0, "")
    return [*found, seen(root)]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_at_any_step_is_told_and_changes_nothing(name, bare, grown, tmp_path):
    start = bare if name == "build" else grown
    before, *others, after = states(start, tmp_path / "done", name)
    found = []
    while True:
        root = tmp_path / str(len(found))
        shutil.copytree(start, root)
        with full_after(len(found), root / "disk") as full:
            outcome = run(root, name)
        if full.steps >= 0:
            break
        assert not list(index_of(root).segments.glob(".*"))
        now = seen(root)
        if outcome[0]:
            check_refused(root, outcome)
            assert now in (before, *others, after)
        else:  # committed, and only tidying up was left for later
            assert now in (*others, after)
        found.append((outcome[0], now))
        if len(found) % EACH == 0 or now != before:
            with without_fsync():
                if not (name == "build" and now):
                    assert run(root, name) == (0, "")
                check_clean(root)
                assert seen(root)[0] == after[0]
        shutil.rmtree(root)
    assert outcome == (0, "")
    # A version is there from when it is linked; what fails after that is the last flush alone.
    assert found.count((1, before)) >= 3
    assert found.count((1, after)) <= 1


def test_a_full_disk_for_real(tmp_path):
    require_mounts()
    (tmp_path / "disk").mkdir()
    embed(tmp_path / "first", [f"a/{n:02d}" for n in range(300)], 0, dim=32)
    embed(tmp_path / "more", [f"b/{n:02d}" for n in range(200)] + ["a/03"], 1, dim=32)
    run_mounted(small_disk(tmp_path / "disk", "1m"), _fill_up, tmp_path)


def _fill_up(root):
    root = Path(root)
    for name in COMMANDS:
        refused = 0
        before = seen(root)
        for pages in (0, 1, 3, 6, 10, 20, 40, 80):
            _leave(root / "disk" / "filler", pages)
            outcome = run(root, name)
            if not outcome[0]:
                break
            check_refused(root, outcome)
            assert seen(root) == before
            refused += 1
        (root / "disk" / "filler").unlink()
        if outcome[0]:
            outcome = run(root, name)
        assert outcome == (0, "")
        assert refused
        assert seen(root) != before
    check_clean(root)


def _leave(filler, pages):
    """Fill the disk up to a few pages."""
    filler.unlink(missing_ok=True)
    with filler.open("wb", buffering=0) as stream:
        size = 0
        try:
            while True:
                size += stream.write(bytes(PAGE))
        except OSError:
            stream.truncate(max(size - pages * PAGE, 0))
