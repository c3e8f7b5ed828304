"""An index is a dict that can be searched: whatever is done to it, the two agree.

Flushing to the disk is left out here for speed; what a crash does is shown in `test_crash`.
"""

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from clipray.embeddings import Parts
from clipray.errors import InputError
from clipray.index import Index
from clipray.index.appending import append_parts
from clipray.index.builder import build_segment
from clipray.index.compaction import compact
from clipray.index.construct import IndexOptions, construct
from clipray.index.deletions import Doomed
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.table import row_ids
from clipray.index.upkeep import collect_garbage, roll_back
from clipray.index.workers import Here
from tests.careless import without_fsync
from tests.handmade import random_halves, write_embeddings

DIM = 8
KEYS = st.lists(st.integers(0, 40).map("s/{}".format), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32 - 1)


class WhileBuilding(Here):
    """Workers during whose work something else is committed, once."""

    def __init__(self, root, meanwhile):
        super().__init__(root)
        self._meanwhile = [meanwhile]

    def run(self, function, calls, on=None):
        done = list(super().run(function, calls, on))
        if function is build_segment and self._meanwhile:
            self._meanwhile.pop()()
        yield from done


class IndexIsADict(RuleBasedStateMachine):
    def __init__(self):
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.root = Path(tempfile.mkdtemp(prefix="clipray-", dir=memory))
        self.folder = IndexFolder(self.root / "index")
        self.rows = {}
        self.versions = {}
        self._patched = without_fsync()
        self._patched.__enter__()

    def teardown(self):
        self._patched.__exit__(None, None, None)
        shutil.rmtree(self.root)

    @initialize(keys=KEYS, seed=SEEDS, shards=st.integers(1, 3))
    def new(self, keys, seed, shards):
        parts, fresh = self._embedded(keys, seed, bad=False)
        options = IndexOptions(method="Flat", shards=min(shards, len(keys)))
        made = construct(parts, self.folder, options, Here(self.folder.root))
        assert self.folder.commit(made.manifest)
        made.ledger.clear()
        self.rows = fresh
        self._committed(made.manifest)

    @rule(keys=KEYS, seed=SEEDS, bad=st.booleans())
    def append(self, keys, seed, bad):
        self._committed(self._append(keys, seed, bad))

    @rule(keys=KEYS)
    def remove(self, keys):
        self._committed(self._remove(keys))

    @rule(even=st.booleans())
    def remove_by_filter(self, even):
        manifest, removed = remove_rows(
            self.folder, Doomed(filter={"even": even}), Here(self.folder.root)
        )
        gone = [key for key in self.rows if _even(key) == even]
        assert sorted(removed) == sorted(row_ids(gone))
        self.rows = {key: self.rows[key] for key in self.rows if key not in gone}
        self._committed(manifest)

    @rule(full=st.booleans())
    def compact(self, full):
        manifest = compact(self.folder, Here(self.folder.root), full=full)
        assert not full or (not manifest.dead and len(manifest.segments) <= len(manifest.shards))
        self._committed(manifest)

    @precondition(lambda self: len(self.rows) >= 3)
    @rule(shards=st.integers(1, 3))
    def cut_anew(self, shards):
        manifest = compact(self.folder, Here(self.folder.root), shards=shards)
        assert len(manifest.shards) == shards
        self._committed(manifest)

    @rule(keys=KEYS, seed=SEEDS, removing=st.booleans())
    def compact_while_others_write(self, keys, seed, removing):
        def meanwhile():
            self._committed(self._remove(keys) if removing else self._append(keys, seed, bad=False))

        self._committed(compact(self.folder, WhileBuilding(self.folder.root, meanwhile)))

    @rule(keys=KEYS, seed=SEEDS, others=KEYS)
    def append_while_others_write(self, keys, seed, others):
        parts, fresh = self._embedded(keys, seed, bad=False)
        workers = WhileBuilding(
            self.folder.root,
            lambda: self._committed(self._append(others, seed + 1, bad=False)),
        )
        done = append_parts(self.folder, parts, workers)
        self.rows |= fresh
        self._committed(done.manifest)

    @rule(choice=st.integers(0, 1000))
    def roll_back(self, choice):
        versions = sorted(self.versions)
        version = versions[choice % len(versions)]
        self.rows = dict(self.versions[version])
        self._committed(roll_back(self.folder, version))

    @rule(keep=st.integers(1, 3))
    def collect_garbage(self, keep):
        collect_garbage(self.folder, keep, Here(self.folder.root))
        kept = sorted(self.versions)[-keep:]
        assert self.folder.versions() == kept
        self.versions = {version: self.versions[version] for version in kept}
        assert len(list(self.folder.segments.iterdir())) == len(self._segments())

    @rule(choice=st.integers(0, 1000), seed=SEEDS, k=st.integers(1, 50))
    def an_old_version_answers_as_it_did(self, choice, seed, k):
        versions = sorted(self.versions)
        self._check(versions[choice % len(versions)], seed, k)

    def _append(self, keys, seed, bad):
        parts, fresh = self._embedded(keys, seed, bad)
        if not fresh:
            with pytest.raises(InputError, match="no usable row"):
                append_parts(self.folder, parts, Here(self.folder.root))
            return self.folder.read()
        done = append_parts(self.folder, parts, Here(self.folder.root))
        assert (done.rows, done.replaced) == (len(fresh), len(fresh.keys() & self.rows.keys()))
        self.rows = self.rows | fresh
        return done.manifest

    def _remove(self, keys):
        manifest, removed = remove_rows(
            self.folder, Doomed(ids=row_ids(keys)), Here(self.folder.root)
        )
        assert len(removed) == len(set(keys) & self.rows.keys())
        self.rows = {key: self.rows[key] for key in self.rows if key not in keys}
        return manifest

    def _embedded(self, keys, seed, bad):
        """Embeddings on disk, and what of them is to come in: of equal keys the first usable."""
        vectors = random_halves(len(keys), DIM, seed)
        usable = np.ones(len(keys), bool)
        if bad:
            usable = np.random.default_rng(seed).random(len(keys)) < 0.7
            vectors[~usable, 0] = np.nan
        root = Path(tempfile.mkdtemp(dir=self.root))
        write_embeddings(root, [(keys, vectors)], {0: {"even": [_even(key) for key in keys]}})
        fresh = {}
        for key, vector, good in zip(keys, vectors, usable, strict=True):
            if good:
                fresh.setdefault(key, vector)
        return Parts.open(root), fresh

    def _committed(self, manifest):
        self.versions[manifest.version] = dict(self.rows)
        self._check(None, manifest.version, 7)

    def _check(self, version, seed, k):
        index = Index.open(self.folder.root, version)
        rows = self.versions[index.manifest.version]
        assert len(index) == index.manifest.rows == len(rows)
        queries = random_halves(3, DIM, seed).astype(np.float32)
        even = bool(seed % 2)
        for tree in (None, {"even": even}):
            some = {key: rows[key] for key in rows if tree is None or _even(key) == even}
            for query, found in zip(queries, index.search(queries, k, filter=tree), strict=True):
                assert [(m.key, m.score) for m in found] == _best(some, query, k)
        for key in ("s/0", "s/1", "s/40"):
            assert {key} & rows.keys() == {m.key for m in index.search(queries[:1], 99)[0]} & {key}

    def _segments(self):
        read = (self.folder.read(version) for version in self.versions)
        return {segment.id for manifest in read for segment in manifest.segments}


def _even(key):
    return int(key.removeprefix("s/")) % 2 == 0


def _best(rows, query, k):
    if not rows:
        return []
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    stored = np.stack(list(rows.values())).astype(np.float64)
    scores = (stored @ unit.astype(np.float32).astype(np.float64)).astype(np.float32)
    order = np.lexsort((row_ids(rows), -scores))[:k]
    keys = list(rows)
    return [(keys[place], float(scores[place])) for place in order]


COMMON = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.filter_too_much],
}


class TestShort(IndexIsADict.TestCase):
    settings = settings(max_examples=200, stateful_step_count=5, **COMMON)


@pytest.mark.soak
class TestLong(IndexIsADict.TestCase):
    settings = settings(max_examples=500, stateful_step_count=40, **COMMON)
