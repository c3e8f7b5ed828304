"""The embedding job: on a real Ray, and what it decides, which needs none."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipray import storage
from clipray.embed import EmbedConfig, embed
from clipray.embeddings import EmbeddingsFolder
from clipray.errors import ClipRayError, InputError, MismatchError, ModelError, OutputError
from tests.drawing import write_files, write_folder, write_parquets, write_shards


@pytest.fixture
def config(shards, model, tmp_path):
    """In this process."""
    return EmbedConfig(
        input=(str(shards),), output=tmp_path / "emb", model=str(model), modality="both", workers=0
    )


@pytest.fixture
def on_ray(config, ray_session):
    """With encoder actors."""
    return config.model_copy(update={"workers": 1})


@pytest.mark.parametrize(("kind", "processes"), [("config", 0), ("config", 1), ("on_ray", 2)])
def test_the_job_equals_embedding_shard_by_shard(request, kind, processes, embeddings):
    config = request.getfixturevalue(kind)
    config = config.model_copy(update={"decode_processes": processes})
    report = embed(config)
    assert (report.rows, report.rejected, report.exit_code) == (40, {}, 0)
    made, plain = EmbeddingsFolder(config.output), EmbeddingsFolder(embeddings)
    for part in range(3):
        for modality in ("image", "text"):
            found = np.load(made.vectors(part, modality)).astype(np.float32)
            wanted = np.load(plain.vectors(part, modality)).astype(np.float32)
            assert (found * wanted).sum(axis=1).min() > 0.999
        keys = [pq.read_table(f.metadata(part))["image_path"].to_pylist() for f in (made, plain)]
        assert keys[0] == keys[1]


def test_a_rerun_embeds_only_what_is_missing(config):
    embed(config)
    folder = EmbeddingsFolder(config.output)
    untouched = folder.vectors(0, "image").stat().st_mtime_ns
    folder.done(1).unlink()
    report = embed(config)
    assert (report.rows, report.embedded) == (40, 16)
    assert folder.vectors(0, "image").stat().st_mtime_ns == untouched


def test_added_shards_become_added_parts(config, shards, tmp_path):
    grown = tmp_path / "shards"
    shutil.copytree(shards, grown)
    grown_config = config.model_copy(update={"input": (str(grown),)})
    embed(grown_config)
    write_shards(tmp_path / "more", count=5, per_shard=5)
    shutil.copy(tmp_path / "more/00000.tar", grown / "000000.tar")  # sorts before the others
    shutil.copy(tmp_path / "more/00000_stats.json", grown / "000000_stats.json")
    report = embed(grown_config)
    assert (report.rows, report.embedded) == (45, 5)
    manifest = EmbeddingsFolder(config.output).read()
    assert manifest.shards[3] == "shards/000000.tar"


def test_damaged_shards_are_left_out_and_the_others_finish(on_ray, shards, tmp_path):
    config = on_ray
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    data = (broken / "00001.tar").read_bytes()
    (broken / "00001.tar").write_bytes(data[: len(data) // 2])
    for name in ("00003", "00004"):
        (broken / f"{name}_stats.json").write_text('{"successes": 1}')
    (broken / "00003.tar").mkdir()
    (broken / "00004.tar").symlink_to(broken / "nowhere")
    report = embed(config.model_copy(update={"input": (str(broken),)}))
    assert report.rows == 24
    assert report.exit_code == 3
    assert sorted(report.skipped) == [str(broken / f"0000{n}.tar") for n in (1, 3, 4)]
    assert not EmbeddingsFolder(config.output).done(1).exists()


def test_another_model_or_modality_is_refused_naming_both(config, model, tmp_path):
    embed(config)
    with pytest.raises(MismatchError, match="modality both, not image"):
        embed(config.model_copy(update={"modality": "image"}))
    other = tmp_path / "other"
    shutil.copytree(model, other)
    settings = json.loads((other / "open_clip_config.json").read_text())
    settings["preprocess_cfg"]["mean"] = [0.5, 0.5, 0.5]
    (other / "open_clip_config.json").write_text(json.dumps(settings))
    with pytest.raises(MismatchError, match=r"other \(.+ written with model \("):
        embed(config.model_copy(update={"model": str(other)}))


def test_a_changed_input_is_refused(config, shards, tmp_path):
    changed = tmp_path / "shards"
    shutil.copytree(shards, changed)
    changed_config = config.model_copy(update={"input": (str(changed),)})
    embed(changed_config)
    shutil.copy(changed / "00002.tar", changed / "00000.tar")
    shutil.copy(changed / "00002_stats.json", changed / "00000_stats.json")
    with pytest.raises(MismatchError, match="when it was embedded"):
        embed(changed_config)


def test_a_folder_of_other_things_is_not_touched(config, photos):
    before = sorted(photos.rglob("*"))
    with pytest.raises(OutputError, match="no embeddings folder"):
        embed(config.model_copy(update={"output": photos}))
    assert sorted(photos.rglob("*")) == before


def test_missing_and_empty_inputs_are_told_apart(config, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        embed(config.model_copy(update={"input": (str(tmp_path / "nowhere"),)}))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image and no"):
        embed(config.model_copy(update={"input": (str(tmp_path / "empty"),)}))
    assert not config.output.exists()


def test_an_unknown_model_leaves_no_output(config):
    with pytest.raises(ModelError, match="did you mean ViT-B-32"):
        embed(config.model_copy(update={"model": "ViT-B-23"}))
    assert not config.output.exists()


def test_a_hopeless_run_stops_early(on_ray, tmp_path):
    config = on_ray
    hopeless = write_shards(tmp_path / "hopeless", count=120, per_shard=120)
    for number in range(40):
        (tmp_path / "no").mkdir(exist_ok=True)
        (tmp_path / f"no/{number}.png").write_bytes(b"no picture")
    given = {"input": (str(hopeless), str(tmp_path / "no")), "modality": "image"}
    tolerant = config.model_copy(update=given)
    report = embed(tolerant)
    assert report.rejected == {"not a readable image": 40}
    assert report.summary().endswith(f"listed in {tolerant.output / 'rejected'}")
    strict = tolerant.model_copy(update={"output": tmp_path / "s", "max_reject_fraction": 0.2})
    with pytest.raises(ClipRayError, match="40 of 160 samples were rejected"):
        embed(strict)


def test_the_pool_of_actors_may_grow(on_ray):
    report = embed(on_ray.model_copy(update={"max_workers": 2}))
    assert report.rows == 40


def test_every_format_and_pattern_in_one_folder(config, tmp_path, encoder):
    write_shards(tmp_path / "tars", 10, 5)
    write_files(tmp_path / "files", 10, 5)
    write_parquets(tmp_path / "rows", 10, 5)
    given = (f"{tmp_path}/tars/{{00000..00002}}.tar", str(tmp_path / "files"), f"{tmp_path}/ro*")
    report = embed(config.model_copy(update={"input": given}))
    assert (report.samples, report.rows, report.filtered) == (30, 30, 0)
    assert list(report.skipped) == [f"{tmp_path}/tars/00002.tar"]
    assert report.exit_code == 3
    folder = EmbeddingsFolder(config.output)
    vectors = [np.load(folder.vectors(part, "text")) for part in range(6)]
    tars, files, rows = (np.concatenate(vectors[start : start + 2]) for start in (0, 2, 4))
    order = [pq.read_table(folder.metadata(part))["caption"].to_pylist() for part in range(6)]
    by_caption = dict(zip(order[4] + order[5], rows, strict=True))
    np.testing.assert_allclose(tars, files, atol=2e-3)
    np.testing.assert_allclose(tars, [by_caption[c] for c in order[0] + order[1]], atol=2e-3)


def test_a_filter_is_a_setting_of_the_folder(config):
    filtered = config.model_copy(update={"filter": {"caption": {"$contains": "red"}}})
    report = embed(filtered)
    assert (report.samples, report.rows, report.filtered, report.exit_code) == (40, 10, 30, 0)
    assert "40 samples = 10 rows + 0 rejected" in report.summary()
    assert embed(filtered).embedded == 0
    with pytest.raises(MismatchError, match=r"filter \{.+\}, not None"):
        embed(config)


def test_the_report_accounts_for_time_and_samples(on_ray, capsys):
    report = embed(on_ray)
    assert 0 < report.encoder_busy <= 1
    assert report.images_per_s > 0
    assert report.seconds["encode"] > 0
    assert "40/40" in capsys.readouterr().err  # the bar counts samples, not shards


def test_images_that_come_later_are_added(config, tmp_path):
    photos = write_folder(tmp_path / "photos", 10)
    grown = config.model_copy(update={"input": (str(photos),)})
    assert embed(grown).rows == 10
    write_folder(tmp_path / "more", 3)
    shutil.copytree(tmp_path / "more", photos / "a")  # sorts before the others
    shutil.copy(tmp_path / "more/even/0000.png", photos / "zzz.png")
    report = embed(grown)
    assert (report.samples, report.embedded, report.rejected) == (14, 3, {"no caption": 1})
    assert embed(grown).embedded == 0
    keys = [
        key
        for part in EmbeddingsFolder(config.output).parts()
        for key in pq.read_table(EmbeddingsFolder(config.output).metadata(part))[0].to_pylist()
    ]
    (photos / "even/0000.png").unlink()
    assert len(keys) == 13
    with pytest.raises(MismatchError, match=r"even/0000\.png"):
        embed(grown)


def test_the_number_of_a_shard_that_went_unfinished_is_free_again(config, shards, tmp_path):
    part_of_it = tmp_path / "shards"
    shutil.copytree(shards, part_of_it)
    given = config.model_copy(update={"input": (str(part_of_it),)})
    embed(given)
    folder = EmbeddingsFolder(config.output)
    folder.done(1).unlink()
    for path in part_of_it.glob("00001*"):
        path.rename(path.with_name(path.name.replace("00001", "00007")))
    assert (embed(given).rows, list(folder.parts())) == (40, [0, 1, 2])
    assert folder.read().shards == ("shards/00000.tar", "shards/00007.tar", "shards/00002.tar")


def test_a_second_job_into_the_same_folder_is_refused(config):
    lock = EmbeddingsFolder(config.output).lock
    with storage.locked(lock), pytest.raises(OutputError, match="another embedding job"):
        embed(config)
    assert embed(config).rows == 40  # what the refused one left does not stand in the way
