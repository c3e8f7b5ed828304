"""The first walk of cluster/README.md, command by command, in a fresh copy of the repository."""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from tests.heads import free_ports
from tests.processes import run_script

ROOT = Path(__file__).parents[1]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".peers", "clipray-demo", "__pycache__", ".*_cache"
)
PORTS = [
    f"{name}_PORT" for name in ("HEAD", "DASHBOARD", "CLIENT", "AGENT", "NODE_AGENT", "SERVICE")
]
SECONDS = 600


def blocks(text):
    """The commands of the section about this machine."""
    section = text.partition("\n## 1. ")[2].partition("\n## 2. ")[0]
    return re.findall(r"^```sh\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


@pytest.fixture
def copy(tmp_path):
    """The repository as it is cloned, with this environment in place of what `make venv` makes."""
    folder = tmp_path / "clipray"
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
    activate = folder / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    programs = Path(sys.executable).parent
    activate.write_text(f"export PATH={programs}:$PATH PYTHONPATH={folder}\n", encoding="utf-8")
    return folder


@pytest.fixture
def ray_files():
    """A short path, as sockets want it, that goes in the end."""
    folder = tempfile.mkdtemp(prefix="clipray-", dir="/tmp")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.soak
def test_the_walk_on_this_machine_ends_with_an_answer(copy, ray_files, photos, model, tmp_path):
    commands = blocks((copy / "cluster/README.md").read_text(encoding="utf-8"))
    assert len(commands) == 7
    script = tmp_path / "walk.sh"
    script.write_text("set -euo pipefail\n" + "".join(commands), encoding="utf-8")
    given = {"PICTURES": photos, "MODEL": model, "RAY_FILES": ray_files}
    given |= dict(zip(PORTS, free_ports(len(PORTS)), strict=True))
    foreign = {name for name in os.environ if name.startswith(("RAY_", "CLIPRAY_"))}
    kept = {name: value for name, value in os.environ.items() if name not in foreign}
    env = kept | {name: str(value) for name, value in given.items()}
    code, text = run_script(script, tmp_path / "said", SECONDS, cwd=copy, env=env)
    assert code == 0, text[-6000:]
    assert '"matches":' in text
    assert '"degraded":false' in text.replace(" ", "")
    assert (copy / "clipray-demo/cluster/index/manifests").is_dir()


def test_the_walk_is_found():
    assert len(blocks((ROOT / "cluster/README.md").read_text(encoding="utf-8"))) == 7
