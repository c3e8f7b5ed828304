"""A new index holds every usable row once, and does not depend on how the rows are cut."""

import faiss
import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError, InputError
from clipray.index import approximate
from clipray.index.construct import IndexOptions, construct
from clipray.index.manifest import IndexFolder, SearchSettings
from clipray.index.reader import Index
from clipray.index.table import row_id
from clipray.index.workers import Here
from clipray.matches import Matches
from tests.handmade import (
    brute_force,
    build_index,
    clustered_halves,
    cut_parts,
    found,
    keys_ids,
    random_halves,
    unit,
    write_embeddings,
)


def constructed(root, parts, method="Flat", shards=1, columns=None):
    """An open index, and how much was rejected why."""
    write_embeddings(root / "e", parts, columns)
    made = build_index(root / "i", root / "e", method, shards)
    return Index.open(root / "i"), made.rejected


def test_shards_share_no_row_and_miss_none(tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(45), 5))
    for shards in (1, 2, 5, 8):
        build_index(tmp_path / f"i{shards}", root, shards=shards)
        index = Index.open(tmp_path / f"i{shards}")
        assert len(index.shards) == shards
        ids = [row for shard in index.shards for row in shard.segments[0].table.ids.tolist()]
        assert sorted(ids) == sorted(keys_ids(45).tolist())


def test_two_flat_shards_equal_one_equal_numpy(tmp_path):
    vectors = random_halves(80, seed=1)
    vectors[50:70] = vectors[:20]  # ties within and across shards
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 2))
    queries = unit(np.random.default_rng(2).normal(size=(30, 16)))
    for shards in (1, 2, 7):
        build_index(tmp_path / f"i{shards}", root, shards=shards)
        answers = Index.open(tmp_path / f"i{shards}").search(queries, 25)
        for query, matches in zip(queries, answers, strict=True):
            assert found(matches) == brute_force(vectors, keys_ids(80), query, 25)


@pytest.mark.parametrize("method", ["Flat", "IVF"])
def test_unusable_rows_stay_out_and_are_counted(tmp_path, method):
    vectors = random_halves(60)
    vectors[3, 5], vectors[4, 0] = np.nan, np.inf
    vectors[5] *= 2
    vectors[6] = 0
    index, rejected = constructed(tmp_path, cut_parts(vectors, 1), method)
    assert rejected == {"not a unit vector": 4}
    assert len(index) == index.manifest.rows == 56
    (shard,) = index.shards
    for row in (3, 4, 5, 6):
        assert shard.find(f"s/{row}") is None
    for row in (0, 2, 7, 59):
        np.testing.assert_array_equal(shard.find(f"s/{row}"), vectors[row].astype(np.float32))
        (matches,) = index.search(vectors[[row]], 1)
        assert matches.items[0].key == f"s/{row}"


def test_a_repeated_key_counts_once_the_first_time(tmp_path):
    first, second = random_halves(4, seed=1), random_halves(4, seed=2)
    parts = [(["a", "b", "a", "c"], first), (["d", "b", "e", "a"], second)]
    index, rejected = constructed(tmp_path, parts, shards=2)
    assert rejected == {"repeated key": 3}
    assert [len(shard) for shard in index.shards] == [3, 2]
    np.testing.assert_array_equal(index.find("a"), first[0].astype(np.float32))
    np.testing.assert_array_equal(index.find("b"), first[1].astype(np.float32))


def test_a_part_of_which_nothing_is_left_still_makes_a_shard(tmp_path):
    parts = [cut_parts(random_halves(5), 1)[0], (list("abcde"), np.zeros((5, 16), np.float16))]
    index, rejected = constructed(tmp_path, parts, shards=2)
    assert rejected == {"not a unit vector": 5}
    empty = index.shards[1]
    assert (len(empty), empty.segments) == (0, ())
    assert len(index.search(np.ones((1, 16)), 10)[0]) == 5


def test_where_nothing_can_be_used_there_is_no_index(tmp_path):
    root = write_embeddings(tmp_path / "e", [(["a", "b"], np.zeros((2, 16), np.float16))])
    with pytest.raises(InputError, match=r"no usable row; left out: \{'not a unit vector': 2\}"):
        build_index(tmp_path / "i", root)
    assert not (tmp_path / "i").exists()


def test_more_shards_than_rows_are_refused(tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(5), 1))
    with pytest.raises(ConfigError, match="6 asked for, but there are 5 rows"):
        build_index(tmp_path / "i", root, shards=6)


def test_an_unusable_method_is_told_before_anything_is_read(tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(5), 1))
    (root / "img_emb" / "img_emb_00000.npy").unlink()
    with pytest.raises(ConfigError, match="Faiss cannot make it"):
        build_index(tmp_path / "i", root, "HNWS32")
    with pytest.raises(DamagedError, match=r"img_emb_00000\.npy"):
        build_index(tmp_path / "i", root, "HNSW32")


def test_a_few_rows_make_an_ivf_index_too(tmp_path):
    index, _ = constructed(tmp_path, cut_parts(random_halves(3), 1), "IVF", 3)
    assert len(index.search(np.ones((1, 16)), 5)[0]) == 3


def test_auto_says_what_it_took_and_why(monkeypatch, tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(600), 2))
    manifest = build_index(tmp_path / "i", root, "auto", shards=2).manifest
    assert (manifest.method, manifest.codec) == ("Flat", None)
    assert manifest.why == "600 rows: an exact scan is cheap"
    monkeypatch.setattr("clipray.index.method.EXACT_UP_TO", 299)
    monkeypatch.setattr("clipray.index.method.EXACT_SHARD", 10)
    manifest = build_index(tmp_path / "j", root, "auto", shards=2).manifest
    assert manifest.method == "IVF24,PQ4x4fs"
    assert "4-bit codes of 4 dimensions" in manifest.why
    assert manifest.settings == SearchSettings(nprobe=3, rescore=10)
    assert build_index(tmp_path / "k", root).manifest.why == "asked for"


def test_the_manifest_says_what_the_index_was_made_of(tmp_path):
    vectors, texts = random_halves(6), random_halves(6, seed=1)
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 2), texts=np.split(texts, 2))
    made = build_index(tmp_path / "i", root, "HNSW32", 2, "text", placement="node")
    manifest = IndexFolder(tmp_path / "i").read()
    assert manifest == made.manifest
    assert (manifest.version, manifest.parent, manifest.verb) == (1, None, "build")
    assert (manifest.modality, manifest.method, manifest.placement) == ("text", "HNSW32", "node")
    assert manifest.model == Parts.open(root).manifest.model
    assert [segment.rows for segment in manifest.segments] == [3, 3]
    np.testing.assert_array_equal(Index.open(tmp_path / "i").find("s/5"), texts[5])


def test_columns_are_carried_over(tmp_path):
    columns = {0: {"caption": ["a", None], "n": [1, 2]}, 1: {"caption": ["c", "d"]}}
    index, _ = constructed(tmp_path, cut_parts(random_halves(4), 2), columns=columns)
    assert index.columns == {"caption", "n"}
    assert index.column("caption") == {"s/0": "a", "s/1": None, "s/2": "c", "s/3": "d"}
    (shard,) = index.shards
    assert shard.row(row_id("s/2")) == {
        "id": row_id("s/2"), "key": "s/2", "caption": "c", "n": None,
    }  # fmt: skip


def test_parts_are_surveyed_by_workers_and_come_in_any_order(tmp_path):
    class Backwards(Here):
        def run(self, function, calls, on=None):
            return reversed(list(super().run(function, calls, on)))

    vectors = random_halves(90)
    vectors[30:60] = 0
    root = write_embeddings(tmp_path / "e", cut_parts(vectors, 3))
    folder = IndexFolder(tmp_path / "i")
    options = IndexOptions(method="IVF4,Flat", shards=3)
    forth = construct(Parts.open(root), folder, options, Here(folder.root)).manifest
    back = construct(Parts.open(root), folder, options, Backwards(folder.root)).manifest
    assert (forth.shards, forth.codec) == (back.shards, back.codec)


@pytest.mark.parametrize("method", ["IVF", "PQ4x4", "IVF4,SQ8", "IVF4,SQ8,RFlat"])
def test_one_trained_codec_serves_all_shards(tmp_path, method):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(120), 3))
    manifest = build_index(tmp_path / "i", root, method, 3).manifest
    folder = IndexFolder(tmp_path / "i")
    assert [path.name for path in folder.codecs.iterdir()] == [manifest.codec.name]
    files = [folder.segment(segment.id) / "index.faiss" for segment in manifest.segments]
    indices = [faiss.read_index(str(file)) for file in files]
    assert [index.ntotal for index in indices] == [40, 40, 40]
    for index in indices:
        index.reset()
    empty = [faiss.serialize_index(index).tobytes() for index in indices]
    assert len(set(empty)) == 1


def test_methods_that_need_no_training_have_no_codec(tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(5), 1))
    assert build_index(tmp_path / "i", root, "HNSW32").manifest.codec is None
    assert not IndexFolder(tmp_path / "i").codecs.exists()


def test_too_few_rows_to_train_on_are_told(tmp_path):
    root = write_embeddings(tmp_path / "e", cut_parts(random_halves(5), 1))
    with pytest.raises(ConfigError, match="'PQ4': cannot be trained on 5 rows"):
        build_index(tmp_path / "i", root, "PQ4")


DIM, ROWS = 32, 4000
HALF = {"n": {"$lt": 2800}}


@pytest.fixture(scope="module")
def random_rows(tmp_path_factory):
    """An embeddings folder of 16 parts."""
    columns = {number: {"n": np.arange(250) * 16 + number} for number in range(16)}
    folder = tmp_path_factory.mktemp("cuts") / "e"
    return write_embeddings(folder, cut_parts(random_halves(ROWS, DIM), 16), columns)


@pytest.fixture(scope="module")
def queries():
    return unit(np.random.default_rng(1).normal(size=(40, DIM)))


def cut(folder, root, method):
    """The same index as 1, 2 and 8 shards."""
    for shards in (1, 2, 8):
        build_index(folder / str(shards), root, method, shards)
        yield Index.open(folder / str(shards))


@pytest.mark.parametrize("tree", [None, HALF])
def test_an_ivf_index_does_not_depend_on_its_shards(
    monkeypatch, tmp_path, random_rows, queries, tree
):
    monkeypatch.setattr(approximate, "FEW_ROWS", 0)  # so that small shards are not scanned
    one, *others = cut(tmp_path, random_rows, "IVF")
    expected = one.search(queries, 10, filter=tree, columns=["n"])
    truth = one.search(queries, 10, filter=tree, exact=True)
    assert 0.3 < mean_recall(expected, truth) < 0.99
    for other in others:
        assert other.search(queries, 10, filter=tree, columns=["n"]) == expected


@pytest.mark.parametrize("method", ["IVF", "HNSW32", "PQ8x4fs", "SQ4", "IVF16,PQ8x4fs"])
def test_more_shards_find_no_less(tmp_path, random_rows, queries, method):
    recalls = []
    for index in cut(tmp_path, random_rows, method):
        index.tuned(index.manifest.settings.model_copy(update={"ef_search": 16, "rescore": 2}))
        for tree in (None, HALF):
            answers = index.search(queries, 10, filter=tree)
            truth = index.search(queries, 10, filter=tree, exact=True)
            recalls.append(mean_recall(answers, truth))
    assert recalls[0] < 1
    assert recalls[0] <= recalls[2] <= recalls[4]
    assert recalls[1] <= recalls[3] <= recalls[5]


def mean_recall(answers: list[Matches], truth: list[Matches]) -> float:
    return float(np.mean([some.recall(best) for some, best in zip(answers, truth, strict=True)]))


@pytest.fixture(scope="module")
def clustered(tmp_path_factory):
    vectors, _ = clustered_halves(80, 20, 64)
    columns = {number: {"n": np.arange(400) + 400 * number} for number in range(4)}
    root = tmp_path_factory.mktemp("methods") / "e"
    return vectors, write_embeddings(root, cut_parts(vectors, 4), columns)


@pytest.mark.parametrize(
    "method",
    [
        "Flat", "HNSW32", "HNSW32_SQfp16", "HNSW32_SQ8", "PCA32,HNSW32", "IVF", "IVF16,Flat",
        "IVF16,PQ16x4fs", "IVF16_HNSW32,PQ16x4fs", "OPQ8_32,IVF16,PQ8x4fs", "IVF16,SQ8,RFlat",
        "PCA32,IVF16,Flat", "PQ16x4fs", "SQ8", "SQfp16", "RaBitQ", "RaBitQfs", "IVF16,RaBitQ",
        "IVF16,RaBitQfs",
    ],
)  # fmt: skip
def test_methods_are_built_searched_and_filtered(tmp_path, clustered, method):
    vectors, root = clustered
    build_index(tmp_path / "i", root, method, 2)
    index = Index.open(tmp_path / "i")
    assert (len(index), index.manifest.method) == (1600, method)
    own = index.search(vectors[::50], 1)
    assert np.mean([m.items[0].key == f"s/{50 * n}" for n, m in enumerate(own)]) > 0.9
    near = unit(vectors[::50].astype(np.float32) + 0.03)
    for tree in (None, {"n": {"$gte": 400}}):
        answers = index.search(near, 10, filter=tree, columns=["n"])
        truth = index.search(near, 10, filter=tree, columns=["n"], exact=True)
        assert mean_recall(answers, truth) > 0.8
        assert all(len(matches) == 10 for matches in answers)
    assert all(match.columns["n"] >= 400 for matches in answers for match in matches)


def test_methods_that_faiss_has_not_for_inner_products_are_refused(tmp_path, clustered):
    for method in ("LSH", "IMI2x4,Flat", "NSG32"):
        with pytest.raises(ConfigError, match=f"method '{method}'"):
            build_index(tmp_path / "i", clustered[1], method)
