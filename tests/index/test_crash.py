"""Power cuts and kills at every step of build, append, remove and compact.

After each the index is the old one or the new one, what was acknowledged is kept, and the next
write succeeds. The same operations written carelessly are found out.
"""

import shutil

import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.errors import ClipRayError, InputError
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.compaction import compact
from clipray.index.construct import IndexOptions, construct
from clipray.index.deletions import Doomed
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.table import row_ids
from clipray.index.workers import Here
from tests.careless import in_place, without_fsync
from tests.crashes import killed_states, lost_states
from tests.handmade import random_halves, write_embeddings

DIM = 8
LAST = "z/0"


def build(root):
    folder = IndexFolder(root / "deep" / "index")
    options = IndexOptions(method="IVF2,Flat", shards=2)
    with folder.writing():
        made = construct(Parts.open(root / "first"), folder, options, Here(folder.root))
        assert folder.commit(made.manifest)
        made.ledger.clear()


def append(root):
    _append(root, "more")


def remove(root):
    folder = IndexFolder(root / "deep" / "index")
    with folder.writing():
        remove_rows(folder, Doomed(ids=row_ids(["a/1", "a/9", "nobody"])), Here(folder.root))


def squeeze(root):
    folder = IndexFolder(root / "deep" / "index")
    with folder.writing():
        compact(folder, Here(folder.root))


def recut(root):
    folder = IndexFolder(root / "deep" / "index")
    with folder.writing():
        compact(folder, Here(folder.root), shards=3)


def append_without_fsync(root):
    with without_fsync():
        append(root)


def remove_without_fsync(root):
    with without_fsync():
        remove(root)


def append_in_place(root):
    with in_place():
        append(root)


def _append(root, name):
    folder = IndexFolder(root / "deep" / "index")
    with folder.writing():
        append_parts(folder, Parts.open(root / name), Here(folder.root))


def content(root):
    """Key → vector of all live rows; empty where there is no index."""
    try:
        index = Index.open(root / "deep" / "index")
    except InputError:
        return {}
    keys = list(index.column("note"))
    found = {key: index.find(key).tobytes() for key in keys}
    answers = index.search(np.eye(DIM, dtype=np.float32), k=100, exact=True)
    assert all({match.key for match in matches} == set(keys) for matches in answers)
    return found


def _write(root, name, keys, seed):
    notes = {0: {"note": [f"note {key}" for key in keys]}}
    write_embeddings(root / name, [(keys, random_halves(len(keys), DIM, seed))], notes)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """Embeddings and no index."""
    root = tmp_path_factory.mktemp("crash") / "bare"
    _write(root, "first", [f"a/{n}" for n in range(12)], 0)
    _write(root, "more", ["a/3", "b/0", "b/1"], 1)
    _write(root, "last", [LAST], 2)
    return root


@pytest.fixture(scope="module")
def grown(bare):
    """An index of several segments with dead rows."""
    root = bare.parent / "grown"
    shutil.copytree(bare, root)
    with without_fsync():
        build(root)
        _append(root, "more")
    return root


OPERATIONS = [build, append, remove, squeeze, recut]


def starting(operation, bare, grown):
    return bare if operation is build else grown


def holds(state, before, after):
    """Old or new, what was acknowledged is kept, and the next write succeeds."""
    try:
        found = content(state.folder)
        assert found == after if state.acknowledged else found in (before, after)
        with without_fsync():
            if not found:
                build(state.folder)
                found = after
            _append(state.folder, "last")
        return content(state.folder).keys() == found.keys() | {LAST}
    except (ClipRayError, AssertionError):
        return False


def bad(states, operation, start, scratch):
    done = scratch / "done"
    shutil.copytree(start, done)
    before = content(done)
    with without_fsync():
        operation(done)
    after = content(done)
    told = [(state.step, state.loss, holds(state, before, after)) for state in states]
    shutil.rmtree(done)
    return len(told), [(step, loss) for step, loss, good in told if not good]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_power_cut_leaves_old_or_new(operation, bare, grown, tmp_path):
    start = starting(operation, bare, grown)
    states = lost_states(operation, start, tmp_path / "lost", seeds=range(2))
    count, found = bad(states, operation, start, tmp_path)
    assert not found
    assert count >= 8


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_kill_leaves_old_or_new(operation, bare, grown, tmp_path):
    start = starting(operation, bare, grown)
    name = f"{__name__}:{operation.__name__}"
    count, found = bad(killed_states(name, start, tmp_path / "killed"), operation, start, tmp_path)
    assert not found
    assert count >= 8


@pytest.mark.parametrize(
    ("careless", "operation"),
    [(append_without_fsync, append), (remove_without_fsync, remove), (append_in_place, append)],
)
def test_a_careless_operation_is_found_out(careless, operation, grown, tmp_path):
    _, found = bad(lost_states(careless, grown, tmp_path / "lost"), operation, grown, tmp_path)
    assert found


def test_a_kill_finds_writing_in_place(grown, tmp_path):
    states = killed_states(f"{__name__}:append_in_place", grown, tmp_path / "killed")
    _, found = bad(states, append, grown, tmp_path)
    assert found
