"""Indices on a real Ray: built by tasks, opened in process."""

import json

import faiss
import numpy as np
import pytest

from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError, InputError, OutputError, QueryError
from clipray.index import Index
from clipray.index.build import IndexBuildConfig, build
from clipray.index.manifest import IndexFolder
from clipray.index.table import row_id

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def truth(embeddings):
    """Ids and vectors of all rows."""
    parts = Parts.open(embeddings, "image")
    vectors = np.concatenate([parts.vectors(number) for number in parts]).astype(np.float32)
    ids = np.array([row_id(key) for number in parts for key in parts.keys(number)])
    return ids, vectors


def test_flat_over_two_shards_equals_brute_force_exactly(flat_index, truth):
    ids, vectors = truth
    rng = np.random.default_rng(0)
    queries = rng.normal(size=(50, vectors.shape[1])).astype(np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries = np.concatenate([queries, vectors])
    units = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1)[:, None]
    scores = (units.astype(np.float32).astype(np.float64) @ vectors.T.astype(np.float64)).astype(
        np.float32
    )
    index = Index.open(flat_index)
    for k in (1, 7, 40, 100):
        for found, row in zip(index.search(queries, k=k), scores, strict=True):
            order = np.lexsort((ids, -row))[:k]
            assert found.ids == ids[order].tolist()
            assert [match.score for match in found] == row[order].tolist()


@pytest.mark.parametrize("method", ["HNSW32", "IVF", "IVF4,SQfp16"])
def test_methods_build_search_and_say_what_they_are(embeddings, tmp_path, truth, method):
    report = build(
        IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i", method=method, shards=3)
    )
    assert (report.rows, report.shards, report.method, report.exit_code) == (40, 3, method, 0)
    ids, vectors = truth
    found = Index.open(tmp_path / "i").search(vectors, k=1)
    hits = np.mean([match.ids == [row] for match, row in zip(found, ids.tolist(), strict=True)])
    assert hits >= 0.9


def test_shards_share_one_trained_codec(embeddings, tmp_path):
    build(IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i", method="IVF", shards=2))
    folder = IndexFolder(tmp_path / "i")
    manifest = folder.read()
    assert manifest.codec
    files = [folder.segment(s.id) / "index.faiss" for sh in manifest.shards for s in sh.segments]
    assert len(files) == 2
    assert len({_centroids(file) for file in files}) == 1


def _centroids(file):
    index = faiss.read_index(str(file))
    inverted = faiss.extract_index_ivf(index)
    return faiss.downcast_index(inverted.quantizer).reconstruct_n(0, inverted.nlist).tobytes()


def test_auto_is_exact_for_a_small_collection(embeddings, tmp_path):
    report = build(IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i"))
    assert report.method == "Flat"


def test_threshold_and_columns_are_obeyed(flat_index, truth):
    index = Index.open(flat_index)
    (matches,) = index.search(truth[1][:1], k=40, threshold=0.9, columns=("caption", "url"))
    assert 0 < len(matches) < 40
    assert all(match.score >= 0.9 for match in matches)
    assert matches.items[0].columns == {
        "caption": "a small red circle",
        "url": "file:000000000",
    }


def test_a_wrong_query_is_refused_before_faiss_sees_it(flat_index):
    index = Index.open(flat_index)
    with pytest.raises(QueryError, match="32 dimensions"):
        index.search(np.ones((1, 31), np.float32))
    with pytest.raises(QueryError, match="points nowhere"):
        index.search(np.full((1, 32), np.nan, np.float32))
    with pytest.raises(QueryError, match="no column colour"):
        index.search(np.ones((1, 32), np.float32), columns=["colour"])
    with pytest.raises(QueryError, match="no row"):
        index.find("nobody")


def test_an_index_is_not_overwritten(embeddings, flat_index, photos):
    with pytest.raises(OutputError, match="holds an index at version 1"):
        build(IndexBuildConfig(embeddings=embeddings, index=flat_index))
    with pytest.raises(OutputError, match="no index"):
        build(IndexBuildConfig(embeddings=embeddings, index=photos))


def test_a_build_that_never_committed_is_done_again(embeddings, tmp_path):
    stray = IndexFolder(tmp_path / "i").segment("stray")
    stray.mkdir(parents=True)
    (stray / "index.faiss").write_bytes(b"half")
    build(IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i"))
    assert len(Index.open(tmp_path / "i")) == 40
    assert not stray.exists()


def test_wrong_requests_name_what_is_wrong(embeddings, photos, tmp_path):
    with pytest.raises(ConfigError, match="there are 40 rows"):
        build(IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i", shards=41))
    with pytest.raises(ConfigError, match="Faiss cannot make it"):
        build(IndexBuildConfig(embeddings=embeddings, index=tmp_path / "i", method="HNWS32"))
    with pytest.raises(InputError, match="no embeddings folder"):
        build(IndexBuildConfig(embeddings=photos, index=tmp_path / "i"))
    with pytest.raises(InputError, match="no index folder"):
        Index.open(tmp_path / "i")


def test_changed_embeddings_are_noticed_by_the_build(embeddings, tmp_path):
    copy = tmp_path / "emb"
    for path in embeddings.rglob("*.*"):
        (copy / path.relative_to(embeddings)).parent.mkdir(parents=True, exist_ok=True)
        (copy / path.relative_to(embeddings)).write_bytes(path.read_bytes())
    vectors = copy / "img_emb/img_emb_00001.npy"
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    with pytest.raises(DamagedError, match=r"img_emb_00001\.npy"):
        build(IndexBuildConfig(embeddings=copy, index=tmp_path / "i"))
    assert not IndexFolder(tmp_path / "i").versions()


def test_the_manifest_names_model_and_parents(flat_index, encoder):
    (path,) = (flat_index / "manifests").glob("*.json")
    tree = json.loads(path.read_text())
    assert tree["model"]["weights"] == encoder.identity.weights
    assert tree["checksum"]
