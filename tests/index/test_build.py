"""`clipray index build` on a real Ray: what only the command does; the rest is tested without."""

import json
import shutil

import numpy as np
import pytest

from clipray.config import load_config
from clipray.embeddings import Parts
from clipray.errors import ConfigError, DamagedError, InputError, OutputError
from clipray.index import Index
from clipray.index.build import IndexBuildConfig, build
from clipray.index.manifest import IndexFolder, ShardRecord
from clipray.index.table import row_ids
from clipray.index.tasks import HERE_UP_TO, RayTasks, workers_for
from clipray.index.upkeep import damage_of
from clipray.index.workers import Here, in_order
from tests.handmade import (
    brute_force,
    build_index,
    clustered_halves,
    cut_parts,
    found,
    unit,
    write_embeddings,
)

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture(scope="module")
def rows():
    return clustered_halves(15, 20, 16)[0]


@pytest.fixture(scope="module")
def made(tmp_path_factory, rows):
    """An embeddings folder, one row of which cannot be used."""
    spoilt = rows.copy()
    spoilt[7] = 0
    return write_embeddings(tmp_path_factory.mktemp("made") / "e", cut_parts(spoilt, 5))


def test_ray_tasks_build_what_this_process_builds(tmp_path, made, rows):
    report = build(
        IndexBuildConfig(embeddings=made, index=tmp_path / "ray", method="IVF4,SQ8", shards=3)
    )
    assert (report.version, report.rows, report.shards, report.method) == (1, 299, 3, "IVF4,SQ8")
    assert (report.rejected, report.exit_code) == ({"not a unit vector": 1}, 3)
    assert "rejected 1: not a unit vector" in report.summary()
    build_index(tmp_path / "here", made, "IVF4,SQ8", 3)
    ours, theirs = (Index.open(tmp_path / name) for name in ("ray", "here"))
    assert ours.manifest.codec == theirs.manifest.codec
    files = [[segment.files for segment in i.manifest.segments] for i in (ours, theirs)]
    assert files[0] == files[1]
    queries = unit(rows[::10].astype(np.float32))
    assert ours.search(queries, 20) == theirs.search(queries, 20)
    assert not IndexFolder(tmp_path / "ray").building.exists()


def test_flat_over_two_shards_equals_brute_force_exactly(flat_index, embeddings):
    parts = Parts.open(embeddings, "image")
    vectors = np.concatenate([parts.vectors(number) for number in parts])
    ids = row_ids(key for number in parts for key in parts.keys(number))
    drawn = np.random.default_rng(0).normal(size=(50, vectors.shape[1]))
    queries = np.concatenate([drawn, vectors.astype(np.float64)])
    index = Index.open(flat_index)
    for k in (1, 7, 100):
        for query, matches in zip(unit(queries), index.search(queries, k), strict=True):
            assert found(matches) == brute_force(vectors, ids, query, k)


def test_auto_is_exact_for_a_small_collection_and_says_why(made, tmp_path):
    report = build(IndexBuildConfig(embeddings=made, index=tmp_path / "i"))
    assert report.method == "Flat"
    assert "method: 300 rows: an exact scan is cheap" in report.summary()
    config = load_config(IndexBuildConfig, tmp_path / "i" / "build.yaml", [])
    assert (config.embeddings, config.method) == (made, "auto")


def test_auto_tunes_what_it_takes(monkeypatch, tmp_path):
    monkeypatch.setattr("clipray.index.method.EXACT_UP_TO", 100)
    monkeypatch.setattr("clipray.index.method.EXACT_SHARD", 10)
    root = write_embeddings(tmp_path / "e", cut_parts(clustered_halves(100, 30)[0], 2))
    build(IndexBuildConfig(embeddings=root, index=tmp_path / "i", recall=0.8))
    manifest = IndexFolder(tmp_path / "i").read()
    assert manifest.method == "IVF54,PQ4x4fs"
    assert (manifest.version, manifest.tuning.target, manifest.tuning.reached) == (1, 0.8, True)


def test_an_index_is_not_overwritten(embeddings, flat_index, photos):
    with pytest.raises(OutputError, match="holds an index at version 1"):
        build(IndexBuildConfig(embeddings=embeddings, index=flat_index))
    with pytest.raises(OutputError, match="no index"):
        build(IndexBuildConfig(embeddings=embeddings, index=photos))


def test_a_build_that_never_committed_goes_on(monkeypatch, made, tmp_path):
    config = IndexBuildConfig(embeddings=made, index=tmp_path / "i", method="IVF4,Flat", shards=3)
    monkeypatch.setattr(IndexFolder, "commit", lambda folder, manifest: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build(config)
    monkeypatch.undo()
    segments = set((tmp_path / "i" / "segments").iterdir())
    build(config)
    index = Index.open(tmp_path / "i")
    assert {tmp_path / "i" / "segments" / s.id for s in index.manifest.segments} == segments
    assert len(index) == 299


def test_of_two_builds_one_wins(monkeypatch, made, tmp_path):
    config = IndexBuildConfig(embeddings=made, index=tmp_path / "i")
    build(config)
    monkeypatch.setattr("clipray.index.build._require_free", lambda folder: None)
    with pytest.raises(OutputError, match="another build was first"):
        build(config)
    assert IndexFolder(tmp_path / "i").versions() == [1]


def test_wrong_requests_name_what_is_wrong(embeddings, photos, tmp_path):
    index = tmp_path / "i"
    with pytest.raises(ConfigError, match="there are 40 rows"):
        build(IndexBuildConfig(embeddings=embeddings, index=index, shards=41))
    with pytest.raises(ConfigError, match="Faiss cannot make it"):
        build(IndexBuildConfig(embeddings=embeddings, index=index, method="HNWS32"))
    with pytest.raises(ConfigError, match="cannot be trained on 40 rows"):
        build(IndexBuildConfig(embeddings=embeddings, index=index, method="IVF99,Flat"))
    with pytest.raises(InputError, match="no embeddings folder"):
        build(IndexBuildConfig(embeddings=photos, index=index))
    with pytest.raises(InputError, match="no index folder"):
        Index.open(index)


def test_changed_embeddings_are_noticed_by_a_task_and_told_plainly(made, tmp_path):
    shutil.copytree(made, tmp_path / "e")
    vectors = tmp_path / "e" / "img_emb" / "img_emb_00001.npy"
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    with pytest.raises(DamagedError, match=r"img_emb_00001\.npy"):
        build(IndexBuildConfig(embeddings=tmp_path / "e", index=tmp_path / "i"))
    assert not IndexFolder(tmp_path / "i").versions()


def test_the_manifest_names_model_and_parents(flat_index, encoder):
    (path,) = (flat_index / "manifests").glob("*.json")
    tree = json.loads(path.read_text())
    assert tree["model"]["weights"] == encoder.identity.weights
    assert tree["checksum"]


def test_little_work_is_done_here_and_much_by_tasks(tmp_path):
    folder = IndexFolder(tmp_path)
    for placement, rows, kind in (
        ("shared", HERE_UP_TO, Here),
        ("shared", HERE_UP_TO + 1, RayTasks),
        ("node", 1, RayTasks),
    ):
        with workers_for(folder, placement, rows) as workers:
            assert type(workers) is kind
            done = in_order(workers.run(damage_of, [(ShardRecord(segments=()),)] * 2))
            assert [(each.call, each.result) for each in done] == [(0, []), (1, [])]
