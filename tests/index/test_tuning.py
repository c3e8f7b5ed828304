"""Chosen settings reach the target, measured with other queries; what cannot be reached is told."""

import numpy as np
import pytest

from clipray.errors import MismatchError
from clipray.index.deletions import Doomed, mark_shard
from clipray.index.manifest import IndexFolder, SearchSettings
from clipray.index.reader import Index
from clipray.index.tuning import QUERIES, tune
from clipray.index.workers import Here
from tests.handmade import (
    build_index,
    clustered_halves,
    cut_parts,
    keys_ids,
    unit,
    write_embeddings,
)

DIM, ROWS, TEXTS = 32, 6000, 300


def beside(vectors, length, gap, seed):
    """Text-like queries: near rows, but moved by one direction."""
    rng = np.random.default_rng(seed)
    noise, way = unit(rng.normal(size=vectors.shape)), unit(rng.normal(size=(1, DIM)))
    return unit(vectors.astype(np.float32) + length * noise + gap * way)


@pytest.fixture(scope="module")
def vectors():
    return clustered_halves(ROWS // 40, 40, DIM)[0]


@pytest.fixture(scope="module")
def texts(vectors):
    """Vectors of the other tower, of which some cannot be used."""
    found = beside(vectors[::5], 1, 1, seed=1).astype(np.float16)
    found[: len(found) - TEXTS] = 0
    return found[::-1].copy()


@pytest.fixture(scope="module")
def root(tmp_path_factory, vectors):
    folder = tmp_path_factory.mktemp("tuning") / "e"
    return write_embeddings(folder, cut_parts(vectors, 4))


def built(folder, root, method, shards=1):
    return IndexFolder(folder), build_index(folder, root, method, shards).manifest


def tuned(folder, manifest, target, embeddings=None):
    return tune(manifest, target, Here(folder.root), embeddings)


def recalls(folder, manifest, vectors):
    """Of fresh queries: rows that must find the others, and moved rows."""
    index = Index(manifest, dict(enumerate(Index.open(folder.root).shards)))
    index.tuned(manifest.settings)
    rows = np.random.default_rng(7).choice(ROWS, 200, replace=False)
    for queries in (vectors[rows], beside(vectors[rows], 1, 1, seed=8)):
        answers, truth = (index.search(queries, 11, exact=exact) for exact in (False, True))
        yield np.mean([some.recall(best) for some, best in zip(answers, truth, strict=True)])


@pytest.mark.parametrize(
    ("method", "target"),
    [("IVF", 0.9), ("IVF", 0.98), ("IVF64,PQ8x4fs", 0.9), ("PQ8x4fs", 0.95), ("HNSW32", 0.9)],
)
def test_chosen_settings_reach_the_target(tmp_path, root, vectors, method, target):
    folder, manifest = built(tmp_path / "i", root, method)
    done = tuned(folder, manifest, target)
    assert done.tuning.reached
    assert (done.tuning.target, done.tuning.rows) == (target, ROWS)
    assert done.tuning.queries == {"image": QUERIES, "text": QUERIES}
    assert min(recalls(folder, done, vectors)) > target - 0.03
    timed = [point for point in done.tuning.curve if point.ms is not None]
    best = min(timed, key=lambda point: point.ms)
    assert best.settings == done.settings
    assert all(min(point.recall.values()) >= target for point in timed)
    assert done.model_copy(update={"settings": manifest.settings, "tuning": None}) == manifest


def test_a_higher_target_costs_more(tmp_path, root):
    folder, manifest = built(tmp_path / "i", root, "IVF")
    probes = [tuned(folder, manifest, target).settings.nprobe for target in (0.7, 0.9, 0.99)]
    assert probes == sorted(set(probes))


def test_what_cannot_be_reached_is_told(caplog, tmp_path, root):
    folder, manifest = built(tmp_path / "i", root, "PQ4x4fs")
    done = tuned(folder, manifest, 0.9999)
    assert not done.tuning.reached
    assert "recall 1.000 was not reached" in caplog.text
    # To rescore more of these few rows would be to look at all of them.
    assert done.settings == done.tuning.curve[-1].settings == SearchSettings(rescore=70)
    assert all(point.ms is None for point in done.tuning.curve)


def test_a_single_shard_may_stand_for_all(monkeypatch, tmp_path, root):
    monkeypatch.setattr("clipray.index.tuning.MEASURED_ROWS", 3500)
    folder, manifest = built(tmp_path / "i", root, "IVF", 4)
    done = tuned(folder, manifest, 0.9)
    assert done.tuning.rows == 3000
    assert done.tuning.reached


def test_vectors_of_the_other_tower_are_the_text_queries(tmp_path, vectors, texts):
    few, more = texts[:ROWS], np.zeros((ROWS - len(texts), DIM), np.float16)
    both = np.concatenate([few, more])
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 1), texts=[both])
    folder, manifest = built(tmp_path / "i", root, "IVF")
    with_texts = tuned(folder, manifest, 0.9, root).tuning
    without = tuned(folder, manifest, 0.9).tuning
    assert with_texts.queries == {"image": QUERIES, "text": QUERIES}
    assert with_texts.curve[0].recall["image"] == without.curve[0].recall["image"]
    assert with_texts.curve[0].recall["text"] != without.curve[0].recall["text"]


def test_few_usable_texts_are_all_used(tmp_path, vectors, texts):
    both = np.concatenate([texts[:37], np.zeros((ROWS - 37, DIM), np.float16)])
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 1), texts=[both])
    folder, manifest = built(tmp_path / "i", root, "IVF")
    assert tuned(folder, manifest, 0.9, root).tuning.queries == {"image": QUERIES, "text": 37}


def test_texts_of_another_model_are_refused(tmp_path, root, vectors):
    folder, manifest = built(tmp_path / "i", root, "IVF")
    narrow = vectors[:100, :16]
    other = write_embeddings(tmp_path / "o", cut_parts(narrow, 1), texts=[narrow])
    with pytest.raises(MismatchError, match="the model is"):
        tuned(folder, manifest, 0.9, other)


@pytest.mark.parametrize("method", ["Flat", "IVF"])
def test_where_every_row_is_looked_at_there_is_nothing_to_tune(tmp_path, root, method):
    folder, manifest = built(tmp_path / "i", root, method)
    if method == "IVF":
        everyone = Doomed(ids=keys_ids(ROWS))
        shards = tuple(mark_shard(folder.root, s, everyone).shard for s in manifest.shards)
        manifest = manifest.model_copy(update={"shards": shards})
    assert tuned(folder, manifest, 0.9) == manifest


def test_dead_rows_are_no_queries_and_no_answers(tmp_path, root):
    folder, manifest = built(tmp_path / "i", root, "IVF")
    gone = Doomed(ids=keys_ids(ROWS)[100:])
    shards = tuple(mark_shard(folder.root, shard, gone).shard for shard in manifest.shards)
    done = tuned(folder, manifest.model_copy(update={"shards": shards}), 0.9)
    assert done.tuning.queries == {"image": 100, "text": 100}
    assert done.tuning.rows == 100
    assert done.tuning.reached


def test_copies_of_one_image_do_not_count_as_missed(tmp_path, vectors):
    copies = vectors.copy()
    copies[:1200] = np.repeat(vectors[:12], 100, axis=0)
    root = write_embeddings(tmp_path / "e", cut_parts(copies, 1))
    folder, manifest = built(tmp_path / "i", root, "IVF")
    assert tuned(folder, manifest, 0.95).tuning.reached
