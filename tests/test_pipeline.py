"""All jobs in a row, cut off after every step and begun again."""

import json
import shutil

import pytest
import yaml

from clipray.cli import main
from clipray.config import load_config
from clipray.errors import ConfigError, MismatchError
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from clipray.pipeline import PipelineConfig, pipeline
from clipray.sections import settled

STEPS = ["train", "export", "embed", "image index", "text index", "evaluate"]
EMBED = {"device": "cpu", "precision": "fp32", "workers": 0, "modality": "both"}


class CutError(Exception):
    """What stands for a kill."""


@pytest.fixture(scope="module")
def whole(shards, model, tmp_path_factory):
    """A pipeline of a model that is there, done."""
    return pipeline(config_of(tmp_path_factory.mktemp("whole") / "work", shards, model))


def config_of(work, shards, model, **sections):
    tree = {
        "work": work,
        "input": [str(shards)],
        "embed": EMBED | ({"model": str(model)} if model else {}),
        "image_index": {"method": "Flat", "shards": 2},
        "text_index": {"method": "Flat"},
        "evaluate": None,
    }
    return PipelineConfig(**(tree | sections))


def train_section(architecture):
    return {
        "model": str(architecture),
        "epochs": 1,
        "workers": 1,
        "precision": "fp32",
        "loader": {"batch_size": 20},
        "log": {"tensorboard": False},
    }


def told(report):
    """Names of the steps that ran, and of those that were kept."""
    ran = [step.name for step in report.steps if not step.kept]
    return ran, [step.name for step in report.steps if step.kept]


@pytest.mark.usefixtures("ray_session")
def test_cut_off_after_each_step_it_does_what_is_left(shards, model, tmp_path, monkeypatch):
    config = config_of(tmp_path / "work", shards, model)
    cut_everywhere(config, STEPS[2:], monkeypatch)
    work = config.work
    assert len(Index.open(work / "image-index")) == len(Index.open(work / "text-index")) == 40
    assert IndexFolder(work / "image-index").versions() == [1]
    assert json.loads((work / "evaluation.json").read_text())["found"]["queries"] == 40


@pytest.mark.soak
@pytest.mark.usefixtures("ray_session")
def test_so_it_does_with_training_and_export(shards, architecture, tmp_path, monkeypatch):
    train = train_section(architecture)
    export = {"towers": "image", "samples": 4}
    config = config_of(tmp_path / "work", shards, None, train=train, export=export)
    cut_everywhere(config, STEPS, monkeypatch)
    assert (config.work / "model/exported/image/model_fp32.onnx").is_file()
    with pytest.raises(MismatchError, match="epochs 1, now 2"):
        pipeline(config_of(config.work, shards, None, train=train | {"epochs": 2}))
    assert told(pipeline(config)) == ([], STEPS)


def cut_everywhere(config, steps, monkeypatch):
    for number, name in enumerate(steps, start=1):
        with monkeypatch.context() as patched:
            cut_after(number, patched)
            with pytest.raises(CutError, match=name):
                pipeline(config)
    assert told(pipeline(config)) == ([], steps)


@pytest.mark.usefixtures("ray_session")
def test_a_trained_model_is_kept_if_it_is_of_the_same_recipe(shards, model, architecture, tmp_path):
    section = train_section(architecture)
    config = config_of(tmp_path / "work", shards, None, train=section)
    shutil.copytree(model, config.work / "model")
    used = settled(config).train.model_dump(mode="json")
    (config.work / "model/train.yaml").write_text(yaml.safe_dump(used))
    assert told(pipeline(config))[1] == ["train"]
    with pytest.raises(MismatchError, match=r"work/model: was made with epochs 1, now 3"):
        pipeline(config_of(config.work, shards, None, train=section | {"epochs": 3}))
    freer = section | {"workers": 2, "retries": 0}  # does not decide what comes out
    assert told(pipeline(config_of(config.work, shards, None, train=freer)))[0] == []


def cut_after(steps, patched):
    """Let a pipeline end when so many steps are done, all but the last of them kept."""
    told = []
    real = pipeline.__globals__["_run"]

    def run(name, work):
        step = real(name, work)
        told.append(name)
        assert step.kept == (len(told) < steps), name
        if len(told) == steps:
            raise CutError(name)
        return step

    patched.setitem(pipeline.__globals__, "_run", run)


@pytest.mark.usefixtures("ray_session")
def test_the_report_has_a_line_for_each_step(whole):
    lines = whole.summary().splitlines()
    assert [line for line in lines if not line.startswith("  ")] == [
        f"{step.name}: {step.seconds:.1f} s" for step in whole.steps
    ]
    assert any("40 samples = 40 rows" in line for line in lines)
    assert whole.exit_code == 0
    assert whole.steps[-1].result["queries"] == 40


@pytest.mark.usefixtures("ray_session")
def test_new_shards_are_appended_and_measured_again(shards, model, tmp_path):
    some = tmp_path / "some"
    shutil.copytree(shards, some, ignore=shutil.ignore_patterns("00002*"))
    report = {"report": tmp_path / "report"}
    config = config_of(tmp_path / "work", some, model, text_index=False, evaluate=report)
    first = pipeline(config)
    shutil.copytree(shards, some, dirs_exist_ok=True)
    again = pipeline(config)
    assert told(again) == (["embed", "image index", "evaluate"], [])
    image = Index.open(config.work / "image-index")
    assert (len(image), image.manifest.verb, image.manifest.version) == (40, "append", 2)
    grown = [report.steps[-1].result["queries"] for report in (first, again)]
    assert grown == [32, 40]
    assert json.loads((tmp_path / "report/report.json").read_text())["queries"] == 40
    assert again.steps[1].result["rows"] == 8


@pytest.mark.usefixtures("ray_session")
def test_what_is_removed_from_the_index_does_not_come_back(shards, model, tmp_path):
    config = config_of(tmp_path / "work", shards, model, text_index=False, evaluate=False)
    pipeline(config)
    (tmp_path / "gone.txt").write_text("shards/000000000\n")
    index = str(config.work / "image-index")
    assert main(["index", "remove", "--index", index, "--keys", str(tmp_path / "gone.txt")]) == 0
    assert told(pipeline(config)) == ([], ["embed", "image index"])
    assert len(Index.open(index)) == 39


@pytest.mark.usefixtures("ray_session")
def test_an_index_of_other_embeddings_is_not_touched(whole, shards, model, flat_index, tmp_path):
    index = {"index": whole.work / "image-index", "method": "Flat", "shards": 2}
    config = config_of(tmp_path, shards / "00000.tar", model, image_index=index, text_index=False)
    with pytest.raises(MismatchError, match="holds an index of other embeddings"):
        pipeline(config)
    assert IndexFolder(whole.work / "image-index").versions() == [1]


@pytest.mark.usefixtures("ray_session")
def test_what_stands_there_of_another_way_is_an_error(whole, shards, model):
    with pytest.raises(MismatchError, match="method Flat, now HNSW32"):
        pipeline(
            config_of(whole.work, shards, model, image_index={"method": "HNSW32", "shards": 2})
        )
    with pytest.raises(MismatchError, match="decode exact, not fast"):
        pipeline(
            config_of(
                whole.work, shards, model, embed=EMBED | {"model": str(model), "decode": "fast"}
            )
        )


def test_the_configuration_used_is_written_and_means_the_same(whole):
    written = whole.work / "pipeline.yaml"
    config = load_config(PipelineConfig, written)
    assert settled(config) == config
    assert yaml.safe_load(written.read_text())["text_index"]["index"].endswith("/text-index")


def test_paths_are_filled_in_unless_they_are_given(tmp_path):
    config = settled(
        PipelineConfig(
            work=tmp_path,
            input=("shards",),
            train={"model": "ViT-B-32", "output": "/models/mine"},
            export={},
            embed={"modality": "text", "output": "/embedded"},
            evaluate={},
        )
    )
    assert config.train.input == config.embed.input == ("shards",)
    assert config.embed.model == config.export.model == "/models/mine"
    assert str(config.export.output) == "/models/mine/exported"
    assert config.image_index is None
    assert str(config.text_index.embeddings) == "/embedded"
    assert config.evaluate.index == tmp_path / "text-index"


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({}, "embed.model: missing"),
        ({"export": {}}, "export.model: missing"),
        (
            {"embed": {"model": "m", "modality": "image"}, "text_index": None},
            "needs embed.modality",
        ),
        ({"embed": {"model": "m"}, "index": {}}, "unknown key 'index'"),
        ({"work": None}, "work"),
    ],
)
def test_what_cannot_work_is_told_before_anything_runs(tree, message, tmp_path):
    given = {"work": tmp_path / "work", "input": ["shards"]} | tree
    with pytest.raises(ConfigError, match=message):
        load_config(PipelineConfig, options=given)
    assert not (tmp_path / "work").exists()
