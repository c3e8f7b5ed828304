"""Cutting rows and building segments: every row once, whole or not at all."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError
from clipray.index.builder import SegmentPlan, assign_rows, build_segment
from clipray.index.codec import train
from clipray.index.columns import columns_of
from clipray.index.feed import PartFeed, PartPiece, SegmentFeed, SegmentPiece
from clipray.index.manifest import IndexFolder
from clipray.index.segment import Segment
from clipray.index.table import row_id
from tests.handmade import cut_parts, keys_ids, random_halves, unit, write_embeddings

DIM, ROWS = 16, 120


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(st.integers(0, 99), st.integers(0, 1000), min_size=1, max_size=30),
    st.integers(1, 30),
)
def test_every_row_goes_to_one_shard_and_none_is_left_without(rows, shards):
    if shards > sum(rows.values()):
        with pytest.raises(ConfigError, match="rows; use fewer"):
            assign_rows(rows, shards)
        return
    assigned = assign_rows(rows, shards)
    assert len(assigned) == shards
    assert all(assigned)
    covered = [(s.part, row) for shard in assigned for s in shard for row in range(s.start, s.stop)]
    assert covered == [(part, row) for part in sorted(rows) for row in range(rows[part])]
    if shards <= sum(count > 0 for count in rows.values()):
        assert all((s.start, s.stop) == (0, rows[s.part]) for shard in assigned for s in shard)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(900, 1000), min_size=20, max_size=60), st.integers(1, 5))
def test_shards_of_similar_parts_are_of_similar_size(rows, shards):
    assigned = assign_rows(dict(enumerate(rows)), shards)
    sizes = [sum(s.stop - s.start for s in shard) for shard in assigned]
    assert max(sizes) - min(sizes) <= 2000


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS, DIM)


@pytest.fixture
def folder(tmp_path):
    return IndexFolder(tmp_path / "index")


@pytest.fixture
def parts(tmp_path, vectors):
    return Parts.open(write_embeddings(tmp_path / "e", cut_parts(vectors, 3)))


def plan(feed, method="Flat", codec=None):
    return SegmentPlan(feed, DIM, method, codec, ROWS)


def of_parts(parts, *keeps):
    pieces = (PartPiece(number, keep) for number, keep in enumerate(keeps))
    return PartFeed(parts, tuple(pieces), columns_of(map(parts.schema, parts)))


def every(parts):
    return of_parts(parts, *(np.ones(part.rows, bool) for part in parts.parts.values()))


@pytest.mark.parametrize("method", ["Flat", "HNSW32", "IVF4,Flat", "SQ8"])
def test_a_segment_holds_the_rows_of_its_feed(folder, parts, vectors, method):
    trained = method in ("IVF4,Flat", "SQ8")
    codec = train(folder, method, ROWS, vectors.astype(np.float32)) if trained else None
    record = build_segment(folder.root, plan(every(parts), method, codec))
    assert (record.rows, record.live, record.deletions) == (ROWS, ROWS, None)
    assert {path.name for path in folder.segment(record.id).iterdir()} == set(record.files)
    for path, file in folder.files(record):
        file.verify(path)
    segment = Segment(folder.segment(record.id))
    np.testing.assert_array_equal(segment.vectors, vectors)
    assert segment.table.ids.tolist() == keys_ids(ROWS).tolist()
    found = segment.search(unit(vectors.astype(np.float32)), 1)
    assert [matches.ids[0] for matches in found] == keys_ids(ROWS).tolist()


def test_a_segment_is_made_of_older_ones(folder, parts, vectors):
    one = build_segment(folder.root, plan(every(parts)))
    two = build_segment(folder.root, plan(of_parts(parts, np.ones(40, bool))))
    feed = SegmentFeed((SegmentPiece(one, 60, ROWS), SegmentPiece(two, 0, 5)))
    record = build_segment(folder.root, plan(feed, "HNSW32"))
    segment = Segment(folder.segment(record.id))
    np.testing.assert_array_equal(segment.vectors, np.concatenate([vectors[60:], vectors[:5]]))
    assert len({one.id, two.id, record.id}) == 3


def test_without_a_row_there_is_no_segment(folder, parts):
    assert build_segment(folder.root, plan(of_parts(parts, np.zeros(40, bool)))) is None
    assert not folder.root.exists()


def test_parts_may_differ_in_their_columns_and_types(tmp_path, folder):
    columns = {
        0: {"caption": pa.array(["a", None]), "width": pa.array([1, 2]), "only": [True, False]},
        1: {"caption": pa.nulls(2), "width": pa.array(["3", "wide"]), "id": [7, 8]},
        2: {"caption": pa.array(["e", "f"]), "width": pa.array([0.5, None]), "key": ["x", "y"]},
    }
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(6), 3), columns)
    record = build_segment(folder.root, plan(every(Parts.open(root))))
    table = Segment(folder.segment(record.id)).table
    assert [value for _, value in table.column("caption")] == ["a", None, None, None, "e", "f"]
    assert [value for _, value in table.column("width")] == ["1", "2", "3", "wide", "0.5", None]
    assert table.row(2) == {
        "id": row_id("s/2"), "key": "s/2", "caption": None, "width": "3", "only": None,
        "input_id": 7, "input_key": None,
    }  # fmt: skip


def test_a_build_that_fails_leaves_no_segment(tmp_path, folder, parts):
    (tmp_path / "e" / "img_emb" / "img_emb_00001.npy").unlink()
    with pytest.raises(DamagedError, match=r"img_emb_00001\.npy: missing"):
        build_segment(folder.root, plan(every(parts)))
    assert [path for path in folder.root.rglob("*") if path != folder.segments] == []


def test_what_the_disk_gives_back_is_compared(monkeypatch, folder, parts):
    write = np.save

    def forgetful(sink, rows):
        write(sink, rows)
        sink._stream.truncate(100)

    monkeypatch.setattr(np, "save", forgetful)
    with pytest.raises(DamagedError, match=r"ids\.npy"):
        build_segment(folder.root, plan(every(parts)))
    assert [path for path in folder.root.rglob("*") if path != folder.segments] == []
