"""One version of an index: whole or told, and what it answers."""

import shutil

import numpy as np
import pytest

from clipray import storage
from clipray.errors import DamagedError, InputError, NotFoundError, QueryError
from clipray.index.manifest import IndexFolder, SearchSettings
from clipray.index.reader import Index
from clipray.matches import Coverage
from tests.handmade import (
    brute_force,
    build_index,
    cut_parts,
    found,
    keys_ids,
    random_halves,
    unit,
    write_embeddings,
)

DIM, ROWS, SHARDS = 16, 90, 3
FILES = ["index.faiss", "rows.arrow", "vectors.npy", "ids.npy"]


@pytest.fixture(scope="module")
def vectors():
    return random_halves(ROWS, DIM)


@pytest.fixture(scope="module")
def root(tmp_path_factory, vectors):
    """A graph over three shards; the column `late` is only in the last one."""
    folder = tmp_path_factory.mktemp("reader")
    columns = {n: {"n": np.arange(30) + 30 * n, "caption": ["a"] * 30} for n in range(SHARDS)}
    columns[2]["late"] = [True] * 30
    embeddings = write_embeddings(folder / "e", cut_parts(vectors, SHARDS), columns)
    build_index(folder / "i", embeddings, "HNSW32", SHARDS)
    return folder / "i"


@pytest.fixture(scope="module")
def index(root):
    return Index.open(root)


@pytest.fixture(scope="module")
def queries():
    return np.random.default_rng(1).normal(size=(12, DIM)) * 7


def damaged_copy(root, target, number, name, damage):
    """A copy of an index of which one file of a shard is damaged; returns that file."""
    shutil.copytree(root, target)
    folder = IndexFolder(target)
    path = folder.segment(folder.read().shards[number].segments[0].id) / name
    data = path.read_bytes()
    path.unlink()
    if damage == "missing":
        return path
    half = len(data) // 2
    kept = {
        "flipped": data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :],
        "cut": data[:-7],
        "emptied": b"",
        "zeroed": bytes(len(data)),
    }
    path.write_bytes(kept[damage])
    return path


def test_it_answers_as_brute_force_does(index, vectors, queries):
    ids = keys_ids(ROWS)
    for k in (1, 10, ROWS + 5):
        for query, matches in zip(unit(queries), index.search(queries, k), strict=True):
            assert found(matches) == brute_force(vectors, ids, query, k)
            assert [f"s/{ids.tolist().index(m.id)}" for m in matches] == [m.key for m in matches]


def test_rows_columns_and_vectors_come_with_the_matches(index, vectors, queries):
    (plain, *_) = index.search(queries, 5)
    assert all(match.columns == {} and match.vector is None for match in plain)
    (filled, *_) = index.search(queries, 5, columns=["n", "late"], vectors=True)
    assert filled.ids == plain.ids
    for match in filled:
        row = int(match.key.removeprefix("s/"))
        assert match.columns == {"n": row, "late": True if row >= 60 else None}
        np.testing.assert_array_equal(match.vector, vectors[row].astype(np.float32))
    assert index.columns == {"n", "caption", "late"}
    assert index.column("n") == {f"s/{row}": row for row in range(ROWS)}
    assert sum(late is True for late in index.column("late").values()) == 30


def test_threshold_filter_and_exactness_are_obeyed(index, vectors, queries):
    query = unit(queries)[:1]
    (every,) = index.search(query, ROWS)
    limit = every.items[9].score
    assert found(index.search(query, ROWS, limit)[0]) == (
        every.ids[:10],
        [m.score for m in every][:10],
    )
    (some,) = index.search(query, 20, filter={"n": {"$gte": 55}})
    allowed = np.arange(ROWS) >= 55
    assert found(some) == brute_force(vectors, keys_ids(ROWS), query[0], 20, allowed)
    assert index.search(query, 20, filter={"n": {"$gte": 55}}, exact=True) == [some]
    assert len(index.search(query, 20, filter={"n": -1})[0]) == 0
    assert index.search(np.empty((0, DIM)), 3) == []


def test_keys_are_found_in_any_shard(index, vectors):
    for row in (0, 29, 30, 89):
        np.testing.assert_array_equal(index.find(f"s/{row}"), vectors[row].astype(np.float32))
    with pytest.raises(NotFoundError, match="key 's/90': no row"):
        index.find("s/90")


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"queries": np.ones((1, DIM - 1))}, r"shape \(1, 15\): the index holds 16 dimensions"),
        ({"queries": np.ones(DIM)}, "the index holds 16 dimensions"),
        ({"queries": np.zeros((1, DIM))}, "points nowhere"),
        ({"queries": np.full((1, DIM), np.nan)}, "points nowhere"),
        ({"queries": np.full((1, DIM), np.inf)}, "points nowhere"),
        ({"k": 0}, "k: 0 matches asked for; give at least 1"),
        ({"k": -3}, "k: -3 matches asked for"),
        ({"columns": ["colour", "n"]}, "no column colour; there are caption, late, n"),
        ({"filter": {"n": {"$near": 1}}}, r"filter: .*\$near"),
        ({"filter": {}}, "filter: expected an object"),
    ],
)
def test_a_wrong_query_is_refused_before_faiss_sees_it(index, wrong, told):
    with pytest.raises(QueryError, match=told):
        index.search(**{"queries": np.ones((1, DIM)), **wrong})


def test_a_whole_index_covers_everything(index):
    assert len(index) == ROWS
    assert index.coverage == Coverage(SHARDS, SHARDS, ROWS, ROWS)
    assert not index.coverage.degraded
    assert index.manifest.version == 1


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing", "emptied", "zeroed"])
def test_damage_is_told_and_the_other_shards_stay_up(
    tmp_path, root, vectors, queries, name, damage
):
    path = damaged_copy(root, tmp_path / "i", 1, name, damage)
    with pytest.raises(DamagedError) as caught:
        Index.open(tmp_path / "i")
    assert str(caught.value).startswith(f"{path}: ")
    index = Index.open(tmp_path / "i", partial=True)
    assert index.coverage == Coverage(SHARDS, 2, 60, ROWS, (1,))
    assert index.coverage.degraded
    left = ~np.isin(np.arange(ROWS), np.arange(30, 60))
    for query, matches in zip(unit(queries), index.search(queries, 70), strict=True):
        assert found(matches) == brute_force(vectors, keys_ids(ROWS), query, 70, left)
    with pytest.raises(NotFoundError):
        index.find("s/30")


def test_files_of_two_segments_that_changed_places_are_told(tmp_path, root):
    path = damaged_copy(root, tmp_path / "i", 0, "vectors.npy", "missing")
    folder = IndexFolder(tmp_path / "i")
    other = folder.segment(folder.read().shards[2].segments[0].id) / "vectors.npy"
    shutil.copy(other, path)
    with pytest.raises(DamagedError, match="its sha256"):
        Index.open(tmp_path / "i")
    assert Index.open(tmp_path / "i", partial=True).coverage.missing == (0,)


def test_where_no_shard_is_whole_there_is_nothing_to_open(tmp_path, root):
    shutil.copytree(root, tmp_path / "i")
    shutil.rmtree(tmp_path / "i" / "segments")
    with pytest.raises(DamagedError, match="none of its 3 shards is whole"):
        Index.open(tmp_path / "i", partial=True)


def test_opening_unverified_reads_no_file_through(monkeypatch, root, index, queries):
    read = []
    monkeypatch.setattr(storage, "sha256_file", read.append)
    fast = Index.open(root, verify=False)
    assert read == []
    assert fast.search(queries, 5) == index.search(queries, 5)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "missing", "zeroed"])
def test_even_unverified_a_file_that_cannot_be_read_is_told(tmp_path, root, name, damage):
    path = damaged_copy(root, tmp_path / "i", 1, name, damage)
    index = Index.open(tmp_path / "i", verify=False, partial=True)
    assert index.coverage.missing == (1,)
    with pytest.raises(DamagedError, match=path.name.replace(".", r"\.")):
        Index.open(tmp_path / "i", verify=False)


def test_a_version_stays_what_it_was(tmp_path, root, queries):
    shutil.copytree(root, tmp_path / "i")
    folder = IndexFolder(tmp_path / "i")
    old = Index.open(folder.root)
    folder.commit(folder.read().next("remove", shards=folder.read().shards[:2]))
    assert (len(old), len(Index.open(folder.root)), len(Index.open(folder.root, 1))) == (90, 60, 90)
    assert Index.open(folder.root, 1).search(queries, 9) == old.search(queries, 9)
    with pytest.raises(InputError, match="has no version 3"):
        Index.open(folder.root, 3)
    with pytest.raises(InputError, match="no index folder"):
        Index.open(tmp_path / "none")


def test_settings_of_the_manifest_are_used_until_others_come(tmp_path, root):
    shutil.copytree(root, tmp_path / "i")
    folder = IndexFolder(tmp_path / "i")
    folder.commit(folder.read().next("tune", settings=SearchSettings(ef_search=33)))
    index = Index.open(folder.root)
    used = [shard.segments[0].approximate for shard in index.shards]
    assert {approximate.settings.ef_search for approximate in used} == {33}
    index.tuned(SearchSettings(ef_search=44))
    assert {approximate.settings.ef_search for approximate in used} == {44}
