"""What stands in jobs/ is what the commands take."""

import re
from pathlib import Path

import pytest

from clipray.cli import COMMANDS
from clipray.config import Config, load_config

JOBS = Path(__file__).parents[1] / "jobs"
NEEDED = {"train": {"input": ("shards",), "output": "model"}}


@pytest.mark.parametrize("file", sorted(JOBS.glob("*.yaml")), ids=lambda file: file.stem)
def test_every_file_is_a_configuration_of_its_verb(file):
    kind, _ = COMMANDS[file.stem].load()
    config = load_config(kind, file, options=NEEDED[file.stem])
    assert isinstance(config, Config)


def test_every_key_that_the_documentation_names_exists():
    kind, _ = COMMANDS["train"].load()
    text = (JOBS / "README.md").read_text(encoding="utf-8")
    sections = "loader|optim|loss|lock|evaluation|checkpoints|log|augment"
    named = set(re.findall(rf"\b({sections})\.([a-z_]+)", text))
    assert len(named) > 10
    for section, key in named:
        assert key in kind.model_fields[section].annotation.model_fields, f"{section}.{key}"
