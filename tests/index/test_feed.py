"""Rows come in order, with the columns of all their sources; the sources stay as they are."""

from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pytest

from clipray.embeddings import Parts
from clipray.errors import DamagedError
from clipray.index import feed
from clipray.index.columns import columns_of
from clipray.index.deletions import Doomed, mark_shard
from clipray.index.feed import (
    PartFeed,
    PartPiece,
    SegmentFeed,
    SegmentPiece,
)
from clipray.index.manifest import IndexFolder
from clipray.index.table import row_ids
from tests.handmade import cut_parts, keys_ids, random_halves, row_table, write_embeddings
from tests.handmade import write_shard as write_pieces

ROWS = 30


def collected(rows, folder):
    """All that a feed gives: vectors, and rows as dicts."""
    chunks = list(rows.chunks(folder))
    assert all(table.schema == rows.schema(folder) for _, table in chunks)
    assert sum(len(vectors) for vectors, _ in chunks) == rows.rows
    table = pa.concat_tables(table for _, table in chunks)
    return np.concatenate([vectors for vectors, _ in chunks]), table.to_pylist()


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS)


@pytest.fixture
def parts(tmp_path, vectors):
    columns = {number: {"n": list(range(10 * number, 10 * number + 10))} for number in range(3)}
    return Parts.open(write_embeddings(tmp_path / "e", cut_parts(vectors, 3), columns))


def part_feed(parts, *keeps):
    pieces = (PartPiece(number, keep) for number, keep in enumerate(keeps))
    return PartFeed(parts, tuple(pieces), columns_of(map(parts.schema, parts)))


def test_selected_rows_of_parts_come_in_order(parts, vectors, tmp_path):
    keeps = [np.arange(10) % 2 == 0, np.zeros(10, bool), np.arange(10) > 7]
    fed = part_feed(parts, *keeps)
    kept = np.flatnonzero(np.concatenate(keeps))
    found, rows = collected(fed, IndexFolder(tmp_path / "i"))
    assert fed.rows == len(kept) == 7
    np.testing.assert_array_equal(found, vectors[kept])
    ids = row_ids(f"s/{row}" for row in kept)
    assert rows == [
        {"id": row_id, "key": f"s/{row}", "n": row}
        for row_id, row in zip(ids.tolist(), kept.tolist(), strict=True)
    ]


def test_a_part_that_is_not_needed_is_not_read(parts, tmp_path):
    (tmp_path / "e" / "img_emb" / "img_emb_00001.npy").unlink()
    every, none = np.ones(10, bool), np.zeros(10, bool)
    found, _ = collected(part_feed(parts, every, none, every), IndexFolder(tmp_path / "i"))
    assert len(found) == 20
    with pytest.raises(DamagedError, match=r"img_emb_00001\.npy: missing"):
        collected(part_feed(parts, every, every), IndexFolder(tmp_path / "i"))


@pytest.fixture
def shard(tmp_path, vectors):
    """A folder, and three segments with some dead rows."""
    pieces = []
    for number, rows in enumerate(np.split(np.arange(ROWS), [12, 13])):
        own = {"n": rows} if number else {}
        pieces.append((vectors[rows], row_table([f"s/{row}" for row in rows], **own)))
    folder, record = write_pieces(tmp_path / "i", pieces)
    return folder, mark_shard(folder.root, record, Doomed(ids=keys_ids(ROWS)[[0, 5, 14]])).shard


@pytest.mark.parametrize("block", [1, 4, 65_536])
def test_live_rows_of_segments_come_in_order(shard, vectors, block):
    folder, record = shard
    first, _, last = record.segments
    fed = SegmentFeed((SegmentPiece(first, 1, 9), SegmentPiece(last, 0, last.live)))
    kept = [2, 3, 4, 6, 7, 8, 9, 10, 13, *range(15, ROWS)]
    with patch.object(feed, "BLOCK_ROWS", block):
        found, rows = collected(fed, folder)
    assert fed.rows == len(kept)
    np.testing.assert_array_equal(found, vectors[kept])
    assert [row["key"] for row in rows] == [f"s/{row}" for row in kept]
    assert [row["n"] for row in rows] == [None] * 8 + kept[8:]
    assert [row["id"] for row in rows] == keys_ids(ROWS)[kept].tolist()


def test_changed_segments_are_not_fed(shard):
    folder, record = shard
    segment = record.segments[0]
    for path, _ in folder.files(segment):
        whole = path.read_bytes()
        path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(DamagedError, match=path.name):
            collected(SegmentFeed((SegmentPiece(segment, 0, 3),)), folder)
        path.write_bytes(whole)
