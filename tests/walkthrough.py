"""A page of the documentation as somebody follows it: from top to bottom, in one shell.

It is run in a fresh copy of the repository, where what its commands name lies beside the code. Its
text is changed only as `_CHANGES` says, for no weights can be downloaded and no store is near.
"""

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.furniture import Stock, lay_out
from tests.heads import Head, free_ports
from tests.pages import ROOT, Block
from tests.processes import run_script

SECONDS = 1800
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", ".peers", "clipray-demo", "__pycache__", ".*_cache"
)

# What is written → what is run, in the files of jobs/ and serve_configs/ too.
_CHANGES = (
    (r"--model ViT-B-32\s+(?:\\\s+)?--pretrained laion2b_s34b_b79k", "--model {model}"),
    (r'name="ViT-B-32", pretrained="laion2b_s34b_b79k"', 'name="{model}"'),
    (r"model: ViT-B-32\b", "model: {model}"),
    (r"pretrained: laion2b_s34b_b79k\b", "pretrained: null"),
    (r"pretrained_model=laion2b_s34b_b79k\b", "pretrained_model=null"),
    (r"--model ViT-B-32\b", "--model {here}/tiny.json"),  # with random weights
    (r"\{00000\.\.00999\}", "{{00000..00002}}"),
    (r"s3://bucket\b", "local://{here}/bucket"),
    (r"(?<![\w.}/])/(?:data|shared)(?=/|\s)", "{here}"),
    (r"/etc/clipray\b", "{here}"),
    (r"http://HEAD:8265\b", "{dashboard}"),
    (r"\bHEAD:6379\b", "{address}"),
    (r"\b127\.0\.0\.1:800[01]\b", "127.0.0.1:{port}"),
    (r"\bport: 8000\b", "port: {port}"),
    (r"\bphotos/00012\b", "shards/000000000"),  # the key of a row of IDX
)

# A service goes behind, on a free port, until the next one or the end, and what is deployed is
# taken down in the end. What a service refuses is an error.
_PRELUDE = """\
set -euo pipefail
service= deployed=
ended() { [ -z "$service" ] || { kill "$service" && wait "$service" || true; }; service=; }
over() { ended; [ -z "$deployed" ] || command serve shutdown --yes --address "$deployed"; }
trap over EXIT
behind() {
  ended
  "$@" & service=$!
  set +x
  until command curl -sf "http://127.0.0.1:$PORT/readyz" > /dev/null; do
    kill -0 "$service"; sleep 0.3
  done
  set -x
}
clipray() {
  case " $* " in
    *" --check "*) command clipray "$@" ;;
    " serve "*) behind env clipray "$@" --port "$PORT" ;;
    *) command clipray "$@" ;;
  esac
}
serve() {
  case $1 in
    run) behind env -u RAY_ADDRESS serve "$@" ;;
    deploy) command serve "$@"; deployed=$4 ;;
    *) command serve "$@" ;;
  esac
}
curl() { command curl --fail-with-body -sS "$@"; echo; }
"""


@dataclass(frozen=True)
class Walk:
    """How a page went: exit code, and all that was said."""

    code: int
    said: str


class Place:
    """The folder where a page is run.

    Args:
        folder: a new one.
        stock: what its data are made from.
        cluster: a running one, which the commands use.
    """

    def __init__(self, folder: Path, stock: Stock, cluster: Head) -> None:
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        self._folder, self._stock = folder, stock
        (port,) = free_ports(1)
        self._given = {
            "model": stock.model,
            "here": folder,
            "dashboard": cluster.dashboard,
            "address": cluster.address,
            "port": port,
        }
        self._environment = cluster.environment | {
            "CLIPRAY_CACHE": str(folder / "cache"),
            "FSSPEC_LOCAL_AUTO_MKDIR": "true",  # as stores have no folders
            "HOME": str(folder / "home"),
            "PORT": str(port),
            "PYTHONPATH": str(folder),
            "RAY_ADDRESS": cluster.address,
        }
        for file in [*folder.glob("jobs/*.yaml"), *folder.glob("serve_configs/*.yaml")]:
            file.write_text(self.changed(file.read_text(encoding="utf-8")), encoding="utf-8")

    def changed(self, text: str) -> str:
        """The text that is run."""
        for found, put in _CHANGES:
            text = re.sub(found, put.format(**self._given), text)
        return text

    def walk(self, blocks: list[Block]) -> Walk:
        """Run these blocks, after laying out what they name."""
        text = self.changed("".join(block.text for block in blocks))
        lay_out(self._folder, text, self._stock)
        steps = [_PRELUDE, *_begun_before(blocks), *map(self._step, blocks)]
        script = self._folder.with_suffix(".sh")
        script.write_text("".join(steps), encoding="utf-8")
        log, env = script.with_suffix(".log"), self._environment
        return Walk(*run_script(script, log, SECONDS, cwd=self._folder, env=env))

    def _step(self, block: Block) -> str:
        text = self.changed(block.text)
        if block.language == "python":
            text = f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n"
        elif name := file_of(block):
            text = f"cat > {name} <<'END_OF_FILE'\n{text}END_OF_FILE\n"
        return f": ==== {block.where}\n{text}"


def file_of(block: Block) -> str | None:
    """The name of a YAML file that a page shows whole, which its first line tells."""
    found = re.match(r"# ([\w.-]+\.yaml)\n", block.text) if block.language == "yaml" else None
    return found[1] if found else None


def _begun_before(blocks: list[Block]) -> list[str]:
    """A service of IDX, where a page asks one that it does not start."""
    before, asked, _ = "".join(block.text for block in blocks).partition("//127.0.0.1:800")
    begun = re.search(r"^(clipray serve --index|serve run)", before, re.MULTILINE)
    return ["clipray serve --index NAME=IDX\n"] if asked and not begun else []
