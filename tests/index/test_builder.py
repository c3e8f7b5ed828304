"""Cutting and building shards: every row once, one codec, nothing unusable inside."""

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipray.builder import (
    EXACT_UP_TO,
    _column_names,
    assign_rows,
    build_shard,
    choose_method,
    plan_shards,
)
from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError
from clipray.manifest import IndexFolder
from clipray.matches import Matches
from clipray.shard import Shard, row_id
from tests.handmade import random_halves, unit, write_embeddings


def named(vectors, start=0):
    return [f"s/{start + row}" for row in range(len(vectors))], vectors


def build(root, index, method="Flat", shards=1):
    """Open shards and what was rejected of each."""
    plans = plan_shards(Parts.open(root), index, method, shards)
    built = [build_shard(plan) for plan in plans]
    opened = [Shard.open(IndexFolder(index), record) for record, _ in built]
    return opened, [rejected for _, rejected in built]


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


def test_shards_share_no_row_and_miss_none(tmp_path):
    root = write_embeddings(
        tmp_path / "e", [named(random_halves(9, seed=n), 9 * n) for n in range(5)]
    )
    for shards in (1, 2, 5, 8):
        opened, rejected = build(root, tmp_path / f"i{shards}", shards=shards)
        ids = [row for shard in opened for row in shard.segments[0].ids.tolist()]
        assert sorted(ids) == sorted(row_id(f"s/{row}") for row in range(45))
        assert rejected == [{}] * shards


def test_two_flat_shards_equal_one_equal_numpy(tmp_path):
    vectors = random_halves(80, seed=1)
    vectors[50:70] = vectors[:20]  # ties within and across shards
    cut = [named(part, start) for part, start in ((vectors[:37], 0), (vectors[37:], 37))]
    root = write_embeddings(tmp_path / "e", cut)
    one, two = (build(root, tmp_path / f"i{n}", shards=n)[0] for n in (1, 2))
    ids = np.array([row_id(f"s/{row}") for row in range(80)])
    for query in unit(np.random.default_rng(2).normal(size=(30, 16))):
        scores = (vectors.astype(np.float64) @ query.astype(np.float64)).astype(np.float32)
        order = np.lexsort((ids, -scores))[:25]
        for shards in (one, two):
            found = Matches.merge([s.search(query[None], 25, None, ())[0] for s in shards], 25)
            assert found.ids == ids[order].tolist()
            assert [match.score for match in found] == scores[order].tolist()


@pytest.mark.parametrize("method", ["Flat", "IVF"])
def test_unusable_rows_stay_out_and_are_counted(tmp_path, method):
    vectors = random_halves(60)
    vectors[3, 5], vectors[4, 0] = np.nan, np.inf
    vectors[5] *= 2
    vectors[6] = 0
    root = write_embeddings(tmp_path / "e", [named(vectors)])
    (shard,), (rejected,) = build(root, tmp_path / "i", method)
    assert rejected == {"not a unit vector": 4}
    assert len(shard) == 56
    for row in (3, 4, 5, 6):
        assert shard.find(f"s/{row}") is None
    for row in (0, 2, 7, 59):
        np.testing.assert_array_equal(shard.find(f"s/{row}"), vectors[row].astype(np.float32))
        (found,) = shard.search(unit(vectors[[row]].astype(np.float32)), 1, None, ())
        assert found.items[0].key == f"s/{row}"


def test_a_repeated_key_counts_once_the_first_time(tmp_path):
    first, second = random_halves(4, seed=1), random_halves(4, seed=2)
    parts = [(["a", "b", "a", "c"], first), (["d", "b", "e", "a"], second)]
    root = write_embeddings(tmp_path / "e", parts)
    (left, right), rejected = build(root, tmp_path / "i", shards=2)
    assert rejected == [{"repeated key": 1}, {"repeated key": 2}]
    assert (len(left), len(right)) == (3, 2)
    np.testing.assert_array_equal(left.find("a"), first[0].astype(np.float32))
    np.testing.assert_array_equal(left.find("b"), first[1].astype(np.float32))


def test_a_part_of_which_nothing_is_left_still_makes_a_shard(tmp_path):
    parts = [named(random_halves(5)), named(np.zeros((5, 16), np.float16), 5)]
    root = write_embeddings(tmp_path / "e", parts)
    (_, empty), rejected = build(root, tmp_path / "i", shards=2)
    assert rejected == [{}, {"not a unit vector": 5}]
    assert len(empty) == 0
    assert empty.search(unit(np.ones((1, 16))), 3, None, ()) == [Matches()]


def test_parts_may_differ_in_their_columns_and_types(tmp_path):
    columns = {
        0: {"caption": pa.array(["a", None]), "width": pa.array([1, 2]), "only": [True, False]},
        1: {"caption": pa.nulls(2), "width": pa.array(["3", "wide"]), "id": [7, 8]},
        2: {"caption": pa.array(["e", "f"]), "width": pa.array([0.5, None]), "key": ["x", "y"]},
    }
    parts = [named(random_halves(2, seed=n), 2 * n) for n in range(3)]
    (shard,), _ = build(write_embeddings(tmp_path / "e", parts, columns), tmp_path / "i")
    assert dict(shard.column("caption")) == dict(
        zip((f"s/{n}" for n in range(6)), ["a", None, None, None, "e", "f"], strict=True)
    )
    assert [value for _, value in shard.column("width")] == ["1", "2", "3", "wide", "0.5", None]
    assert shard.row(row_id("s/2")) == {
        "id": row_id("s/2"), "key": "s/2", "caption": None, "width": "3", "only": None,
        "input_id": 7, "input_key": None,
    }  # fmt: skip


@pytest.mark.parametrize("method", ["IVF", "PQ4x4", "IVF4,SQ8"])
def test_one_trained_codec_serves_all_shards(tmp_path, method):
    parts = [named(random_halves(40, seed=n), 40 * n) for n in range(3)]
    root = write_embeddings(tmp_path / "e", parts)
    plans = plan_shards(Parts.open(root), tmp_path / "i", method, 3)
    (codec,) = {plan.codec for plan in plans}
    path = IndexFolder(tmp_path / "i").codec(codec.name)
    codec.file.verify(path)
    assert faiss.read_index(str(path)).ntotal == 0
    assert [p.name for p in path.parent.iterdir()] == [codec.name]
    records = [build_shard(plan)[0] for plan in plans]
    assert sum(record.rows for record in records) == 120
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DamagedError, match="faiss"):
        build_shard(plans[0])


def test_methods_that_need_no_training_have_no_codec(tmp_path):
    root = write_embeddings(tmp_path / "e", [named(random_halves(5))])
    (plan,) = plan_shards(Parts.open(root), tmp_path / "i", "HNSW32", 1)
    assert plan.codec is None
    assert not (tmp_path / "i").exists()


def test_ivf_can_be_built_of_a_few_rows(tmp_path):
    root = write_embeddings(tmp_path / "e", [named(random_halves(3))])
    (shard,), _ = build(root, tmp_path / "i", "IVF")
    assert len(shard) == 3


def test_too_few_rows_to_train_on_are_told(tmp_path):
    root = write_embeddings(tmp_path / "e", [named(random_halves(5))])
    with pytest.raises(ConfigError, match="'PQ4': cannot be trained on 5 rows"):
        plan_shards(Parts.open(root), tmp_path / "i", "PQ4", 1)


def test_a_build_that_fails_leaves_no_segment(tmp_path):
    root = write_embeddings(tmp_path / "e", [named(random_halves(5))])
    (plan,) = plan_shards(Parts.open(root), tmp_path / "i", "Flat", 1)
    (root / "img_emb" / "img_emb_00000.npy").unlink()
    with pytest.raises(DamagedError, match=r"img_emb_00000\.npy: missing"):
        build_shard(plan)
    assert not list((tmp_path / "i").rglob("*"))


def test_auto_depends_on_the_number_of_rows():
    assert choose_method("auto", EXACT_UP_TO) == "Flat"
    assert choose_method("auto", EXACT_UP_TO + 1) == "HNSW32"
    assert choose_method("IVF", 10) == "IVF"


def test_columns_of_the_input_keep_their_names_beside_ours():
    assert _column_names(["image_path", "id", "input_id", "key", "width"]) == [
        "key",
        "input_input_id",
        "input_id",
        "input_key",
        "width",
    ]
