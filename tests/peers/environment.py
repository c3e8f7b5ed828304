"""The environments of the peers, made once by pip below `.peers/`, or given by variables.

CLIPRAY_PEERS names one that holds `requirements.txt` and `graphs.txt`, CLIPRAY_DATABASES one that
holds `databases.txt`, whose packages want other versions.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements.txt"
GRAPHS = Path(__file__).parents[1] / "benchmarks" / "graphs.txt"
DATABASES = Path(__file__).parents[1] / "benchmarks" / "databases.txt"
HOME = Path(__file__).parents[2] / ".peers"


def peers() -> Path:
    """Folder of a virtual environment that holds what `requirements.txt` says."""
    given = os.environ.get("CLIPRAY_PEERS")
    return Path(given) if given else _made(HOME / "peers", REQUIREMENTS)


def databases() -> Path:
    """Likewise of `databases.txt`."""
    given = os.environ.get("CLIPRAY_DATABASES")
    return Path(given) if given else _made(HOME / "databases", DATABASES)


def peers_with(requirements: Path) -> Path:
    """The same with more packages; what CLIPRAY_PEERS names is taken to have them."""
    home = peers()
    if "CLIPRAY_PEERS" not in os.environ:
        _install(home, requirements)
    return home


def command(name: str, *arguments: object) -> list[str]:
    """A command line of one of the environment's programs."""
    return [str(peers() / "bin" / name), *map(str, arguments)]


def environment() -> dict[str, str]:
    """Variables for programs of the peers: nothing of ours on their path, nothing looked up."""
    ours = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return ours | {"NO_ALBUMENTATIONS_UPDATE": "1", "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}


def run(line: Sequence[str], cwd: Path) -> str:
    """Run a program of the peers; what it printed.

    Raises:
        AssertionError: when it fails, with the end of what it printed.
    """
    done = subprocess.run(
        line,
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{line[0]}: exit {done.returncode}\n{done.stdout[-4000:]}"
    return done.stdout


def _made(home: Path, requirements: Path) -> Path:
    wanted = hashlib.sha256(requirements.read_bytes()).hexdigest()
    marker = home / "installed"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", home], check=True)
        _install(home, requirements)
        marker.write_text(wanted, encoding="utf-8")
    return home


def _install(home: Path, requirements: Path) -> None:
    pip = [home / "bin" / "python", "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--quiet", "-r", requirements], check=True)
