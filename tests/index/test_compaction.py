"""Compaction: what is rewritten, and that nothing but dead rows is lost by it."""

import numpy as np
import pytest

from clipray.errors import ConfigError, OutputError
from clipray.index import Index, compaction
from clipray.index.compaction import MOST_SEGMENTS, compact, everything, needed, recut
from clipray.index.deletions import Doomed
from clipray.index.manifest import (
    Deletions,
    IndexFolder,
    IndexManifest,
    SegmentRecord,
    ShardRecord,
)
from clipray.index.remove import remove_rows
from clipray.index.workers import Here
from clipray.manifest import FileRecord, ModelIdentity, ModelSource
from tests.handmade import (
    build_index,
    clustered_halves,
    cut_parts,
    keys_ids,
    unit,
    write_embeddings,
)

FILE = FileRecord(bytes=1, sha256="0" * 64)
CLUSTERS, EACH, DIM = 30, 300, 32


def segment(name, rows, dead=0):
    deletions = Deletions(name=f"{name}.npy", rows=dead, file=FILE) if dead else None
    return SegmentRecord(id=name, rows=rows, files={}, deletions=deletions)


def manifest(*shards, method="HNSW32", placement="shared"):
    identity = ModelIdentity(name="m", dim=4, weights="w", preprocess="p", tokenizer="t")
    return IndexManifest(
        version=1,
        model=identity,
        source=ModelSource(name="m"),
        modality="image",
        method=method,
        placement=placement,
        shards=tuple(ShardRecord(segments=tuple(segments)) for segments in shards),
    )


def planned(rewrites):
    return [
        (rewrite.shard, [piece.segment.id for piece in rewrite.old], rewrite.rows)
        for rewrite in rewrites
    ]


def test_a_segment_is_rewritten_when_more_than_a_fifth_is_dead():
    whole = manifest([segment("a", 100, dead=20)], [segment("b", 100)])
    assert needed(whole) == []
    worn = manifest([segment("a", 100, dead=21), segment("c", 10)], [segment("b", 100)])
    assert planned(needed(worn)) == [(0, ["a"], 79)]
    gone = manifest([segment("a", 5, dead=5)], [segment("b", 1)])
    assert planned(needed(gone)) == [(0, ["a"], 0)]


def test_the_smallest_segments_are_joined_when_there_are_too_many():
    few = manifest([segment(str(n), 10 + n) for n in range(MOST_SEGMENTS)])
    assert needed(few) == []
    many = manifest([segment(str(n), 10 + n) for n in range(MOST_SEGMENTS + 1)])
    ((shard, names, _),) = planned(needed(many))
    assert (shard, names) == (0, ["0", "1", "2", "3", "4"])


def test_small_parts_of_a_shard_are_scanned_and_whole_shards_have_its_method():
    part = manifest([segment("a", 100, dead=50), segment("b", 1000)])
    assert [rewrite.method for rewrite in needed(part)] == ["Flat"]
    whole = manifest([segment("a", 100, dead=50)])
    assert [rewrite.method for rewrite in needed(whole) + everything(part)] == ["HNSW32"] * 2


def test_everything_is_one_segment_a_shard():
    made = manifest(
        [segment("a", 10), segment("b", 10)], [segment("c", 5)], [segment("d", 9, dead=1)]
    )
    assert planned(everything(made)) == [(0, ["a", "b"], 20), (2, ["d"], 8)]


@pytest.mark.parametrize("shards", [1, 2, 3, 7, 33])
def test_rows_are_dealt_out_anew_in_their_order(shards):
    made = manifest([segment("a", 10), segment("b", 12, dead=2)], [segment("c", 13)])
    cut = recut(made, shards)
    assert [rewrite.shard for rewrite in cut] == list(range(shards))
    pieces = [piece for rewrite in cut for piece in rewrite.old]
    rows = [(p.segment.id, row) for p in pieces for row in range(p.first, p.last)]
    assert rows == [(s.id, row) for s in made.segments for row in range(s.live)]
    sizes = [rewrite.rows for rewrite in cut]
    assert max(sizes) - min(sizes) <= 1


def test_shards_that_cannot_be_cut_are_told():
    with pytest.raises(ConfigError, match="4 asked for, but there are 3 rows"):
        recut(manifest([segment("a", 3)]), 4)
    with pytest.raises(ConfigError, match="stay on their nodes"):
        recut(manifest([segment("a", 3)], placement="node"), 2)


@pytest.mark.parametrize("method", ["HNSW32", "IVF", "Flat"])
def test_recall_survives_the_death_of_clusters(tmp_path, method):
    survive(tmp_path, method, *clustered_halves(CLUSTERS, EACH, DIM))


@pytest.mark.soak
@pytest.mark.parametrize("method", ["HNSW32", "auto"])
def test_recall_survives_the_death_of_clusters_in_a_large_index(tmp_path, method):
    survive(tmp_path, method, *clustered_halves(1000, 100, 512))


def survive(tmp_path, method, vectors, centres):
    """Whole clusters die and queries aim at them; then compaction, beside a fresh index."""
    _, cluster = np.unique(centres, axis=0, return_inverse=True)
    dead = cluster.ravel() < 0.3 * (cluster.max() + 1)
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 4))
    build_index(tmp_path / "i", root, method, shards=2)
    folder, ids = IndexFolder(tmp_path / "i"), keys_ids(len(vectors))
    remove_rows(folder, Doomed(ids=ids[dead]), Here(folder.root))
    rng = np.random.default_rng(1)
    near = vectors[rng.integers(len(vectors), size=300)].astype(np.float32)  # dead ones too
    queries = unit(near + 0.3 * rng.normal(size=near.shape) / DIM**0.5)

    worn = _recall(Index.open(folder.root), queries, set(ids[dead].tolist()))
    compact(folder, Here(folder.root))
    packed = _recall(Index.open(folder.root), queries, set(ids[dead].tolist()))
    keys = [f"s/{row}" for row in np.flatnonzero(~dead)]
    left = write_embeddings(tmp_path / "left", [(keys, vectors[~dead])])
    build_index(tmp_path / "fresh", left, method, shards=2)
    fresh = _recall(Index.open(tmp_path / "fresh"), queries, set())

    print(f"{method}: recall {worn:.4f} worn, {packed:.4f} compacted, {fresh:.4f} fresh")  # noqa: T201
    assert worn >= 0.95
    # A codec stays as it was trained, with centroids where nothing lives any more.
    assert packed >= fresh - (0.005 if method in ("HNSW32", "Flat") else 0.02)
    assert not folder.read().dead
    assert len(folder.read().segments) == 2


def _recall(index, queries, dead):
    found = index.search(queries, k=10)
    assert not any(dead & set(matches.ids) for matches in found)
    truth = index.search(queries, k=10, exact=True)
    return np.mean([mine.recall(best) for mine, best in zip(found, truth, strict=True)])


def test_compaction_gives_up_when_another_is_always_first(tmp_path, monkeypatch):
    vectors, _ = clustered_halves(3, 10, DIM)
    build_index(tmp_path / "i", write_embeddings(tmp_path / "e", cut_parts(vectors, 1)), "Flat")
    folder = IndexFolder(tmp_path / "i")
    remove_rows(folder, Doomed(ids=keys_ids(5)), Here(folder.root))
    build = compaction.build_segment

    def overtaken(root, plan):
        if not overtaken.inside:
            overtaken.inside = True
            compact(folder, Here(folder.root))
            remove_rows(folder, Doomed(ids=keys_ids(30)[next(overtaken.next) :][:1]), Here(root))
            overtaken.inside = False
        return build(root, plan)

    overtaken.inside, overtaken.next = False, iter(range(5, 30))
    monkeypatch.setattr(compaction, "build_segment", overtaken)
    with pytest.raises(OutputError, match="other compactions were first"):
        compact(folder, Here(folder.root))
    assert len(Index.open(folder.root)) == 30 - 5 - compaction.TRIES
