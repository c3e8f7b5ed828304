"""What stands in jobs/ is what the commands take."""

import re
import runpy
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from clipray.cli import COMMANDS
from clipray.config import Config, load_config
from clipray.embed import EmbedConfig
from clipray.errors import ConfigError
from clipray.outputs import JOB_VARIABLE
from clipray.train import TrainConfig

JOBS = Path(__file__).parents[1] / "jobs"
VERBS = {"index": "index build"}
NEEDED = {
    "train": {"input": ("shards",), "output": "model"},
    "embed": {"input": ("shards",), "output": "embeddings"},
    "index": {"embeddings": "embeddings", "index": "index"},
    "export": {"model": "model", "output": "exported"},
    "evaluate": {"index": "index"},
    "pipeline": {"input": ("shards",), "work": "work"},
}
FILES = sorted(JOBS.glob("*.yaml"))
SCRIPTS = sorted(JOBS.glob("*.py"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_file_is_a_configuration_of_its_verb(file):
    kind, _ = COMMANDS[VERBS.get(file.stem, file.stem)].load()
    config = load_config(kind, file, options=NEEDED[file.stem])
    assert isinstance(config, Config)


def test_every_file_has_its_script():
    assert [file.stem for file in FILES] == [script.stem for script in SCRIPTS]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_script_is_its_command(script, capsys):
    verb = VERBS.get(script.stem, script.stem)
    assert run(script, *verb.split()[1:], "--help") == 0
    assert f"usage: clipray {verb}" in capsys.readouterr().out
    text = script.read_text()
    for named in (f"python jobs/{script.name}", f"-c jobs/{script.stem}.yaml"):
        assert text.count(named) == 2  # by itself, and submitted


def test_a_script_keeps_the_exit_code(capsys):
    assert run(JOBS / "evaluate.py", "--index", "nowhere") == 2
    assert "clipray: " in capsys.readouterr().err
    assert run(JOBS / "index.py", "info", "--index", "nowhere") == 2


def test_the_commented_sections_of_the_pipeline_are_sound_too(tmp_path):
    text = (JOBS / "pipeline.yaml").read_text()
    bare = re.sub(r"^# (?=(train|export):|  )", "", text, flags=re.MULTILINE)
    file = tmp_path / "pipeline.yaml"
    file.write_text(bare)
    kind, _ = COMMANDS["pipeline"].load()
    config = load_config(kind, file, options=NEEDED["pipeline"])
    assert config.train.loader.batch_size == 512
    assert config.export.precision == ("fp32", "int8")


def test_a_job_writes_nothing_into_the_package_it_was_shipped_in(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = {"input": ("shards",), "model": "ViT-B-32"}
    assert EmbedConfig(**given, output=Path("out")).output == Path("out")
    monkeypatch.setenv(JOB_VARIABLE, '{"runtime_env": {"working_dir": "gcs://_ray_pkg_1.zip"}}')
    for place in ("out", tmp_path / "out"):
        with pytest.raises(ConfigError, match="output: lies in the copy of the working dir"):
            load_config(EmbedConfig, options={**given, "output": place})
    with pytest.raises(ConfigError, match="run: lies in the copy"):
        load_config(TrainConfig, options={**given, "output": "/shared/model", "run": "run"})
    kept = TrainConfig(**given, output=Path("/shared/model"), run="s3://bucket/run")
    assert (kept.output, kept.run) == (Path("/shared/model"), "s3://bucket/run")
    monkeypatch.setenv(JOB_VARIABLE, '{"runtime_env": {"env_vars": {}}}')
    assert EmbedConfig(**given, output=Path("out")).output == Path("out")


def test_a_folder_to_write_is_no_uri():
    given = {"input": ("shards",), "model": "ViT-B-32", "output": "s3://bucket/embeddings"}
    with pytest.raises(ConfigError, match=r"output: expected a folder .* s3://bucket/embeddings"):
        load_config(EmbedConfig, options=given)


def test_every_key_that_the_documentation_names_exists():
    kind, _ = COMMANDS["train"].load()
    text = (JOBS / "train.md").read_text(encoding="utf-8")
    sections = "loader|optim|loss|lock|evaluation|checkpoints|log|augment"
    named = set(re.findall(rf"\b({sections})\.(?!json\b)([a-z_]+)", text))
    assert len(named) > 10
    for section, key in named:
        assert key in kind.model_fields[section].annotation.model_fields, f"{section}.{key}"


def run(script, *arguments):
    """Exit code of a job that is run in this process."""
    with patch.object(sys, "argv", [str(script), *arguments]), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    return ended.value.code
