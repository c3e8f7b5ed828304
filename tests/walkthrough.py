"""A page of the documentation as somebody follows it: top to bottom, in one shell, on small data.

What a page names by a placeholder lies in the folder where it is run, unless the page makes it.
Its text is changed only as `_CHANGES` says, for no weights can be downloaded and no store is near.
"""

import json
import re
import shutil
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from tests.conftest import ARCHITECTURE
from tests.drawing import drawings, write_folder, write_member, write_shards
from tests.handmade import build_index
from tests.heads import Head, free_ports
from tests.paddle.galleries import FILE as PADDLE_QUERIES
from tests.paddle.leaves import CLIP_YAML
from tests.pages import ROOT, Block
from tests.processes import reap

SECONDS = 900
MANY = 1200  # samples in SHARDS: a batch of 1024 is in a file of ours
LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "clipray-demo", "__pycache__", ".*_cache")

# What the page says → what is run. In the files of jobs/ and serve_configs/ too.
_CHANGES = (
    (r"--model ViT-B-32\s+(?:\\\s+)?--pretrained laion2b_s34b_b79k", "--model {model}"),
    (r"model: ViT-B-32\b", "model: {model}"),
    (r"pretrained: laion2b_s34b_b79k\b", "pretrained: null"),
    (r"pretrained_model=laion2b_s34b_b79k\b", "pretrained_model=null"),
    (r"--model ViT-B-32\b", "--model {here}/tiny.json"),
    (r"\{00000\.\.00999\}", "{{00000..00002}}"),
    (r"s3://bucket\b", "local://{here}/bucket"),
    (r"(?<![\w.}}/])/(?:data|shared)(?=/|\s)", "{here}"),
    (r"http://HEAD:8265\b", "{dashboard}"),
    (r"\bHEAD:6379\b", "{address}"),
    (r"\b127\.0\.0\.1:8000\b", "127.0.0.1:{port}"),
    (r"\bport: 8000\b", "port: {port}"),
    (r"/etc/clipray\b", "{here}"),
    (r"\bphotos/00012\b", "shards/000000000"),  # a row of IDX
)

# A service goes behind, on a free port, until the next one or the end; HTTP errors are errors.
# What is deployed is taken down in the end.
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
    """The folder where a page is run: a fresh copy of the repository, and what the page names.

    Args:
        folder: a new one.
        model: folder of the tiny CLIP.
        embeddings: of drawings and their captions.
        cluster: a running one, which all commands use.
    """

    def __init__(self, folder: Path, model: Path, embeddings: Path, cluster: Head) -> None:
        shutil.copytree(ROOT, folder, ignore=LEFT_OUT)
        (port,) = free_ports(1)
        self._folder, self._model, self._embeddings = folder, model, embeddings
        self._given = {
            "model": model,
            "here": folder,
            "dashboard": cluster.dashboard,
            "address": cluster.address,
            "port": port,
        }
        self._environment = cluster.environment | {
            "CLIPRAY_CACHE": str(folder / "cache"),
            "FSSPEC_LOCAL_AUTO_MKDIR": "true",
            "HOME": str(folder / "home"),
            "PORT": str(port),
            "PYTHONPATH": str(folder),
            "RAY_ADDRESS": cluster.address,
            "RAY_SERVE_LOG_TO_STDERR": "0",
        }
        for file in [*folder.glob("jobs/*.yaml"), *folder.glob("serve_configs/*.yaml")]:
            file.write_text(self.changed(file.read_text(encoding="utf-8")), encoding="utf-8")

    def changed(self, text: str) -> str:
        for found, put in _CHANGES:
            text = re.sub(found, put.format(**self._given).replace("\\", r"\\"), text)
        return text

    def walk(self, blocks: list[Block]) -> Walk:
        """Run these blocks in one shell, after laying out what they name."""
        self._furnish(self.changed("".join(block.text for block in blocks)))
        script = self._folder.with_suffix(".sh")
        steps = [_PRELUDE, *_asked_before_begun(blocks), *map(self._step, blocks)]
        script.write_text("".join(steps), encoding="utf-8")
        with script.with_suffix(".log").open("w+", encoding="utf-8") as log:
            process = subprocess.Popen(
                ["bash", "-x", script],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                code = process.wait(SECONDS)
            except subprocess.TimeoutExpired:
                code = 124
            finally:
                reap(process.pid)
        return Walk(code, script.with_suffix(".log").read_text(encoding="utf-8"))

    def _step(self, block: Block) -> str:
        text = self.changed(block.text)
        if block.language == "python":
            text = f"python - <<'END_OF_PYTHON'\n{text}END_OF_PYTHON\n"
        elif block.language == "yaml":
            text = f"cat > {_file_of(block)} <<'END_OF_YAML'\n{text}END_OF_YAML\n"
        return f": ==== {block.where}\n{text}"

    def _furnish(self, text: str) -> None:
        """Put down what the text names and does not make."""
        text = text.replace("\\\n", " ")
        for names, make in _FURNITURE.items():
            for name in names.split():
                made = rf"{_MAKES}[ =](\S*/)?{re.escape(name)}(?![\w/])"
                place = self._folder / name
                if re.search(rf"\b{re.escape(name)}\b", text) and not re.search(made, text):
                    make(self, place)

    # What the placeholders stand for

    def photos(self, path: Path) -> None:
        write_folder(path)

    def new_photos(self, path: Path) -> None:
        write_folder(path, 60)

    def jpegs(self, path: Path) -> None:
        path.mkdir()
        for number, drawing in enumerate(drawings(20)):
            (path / f"{number:02d}.png").write_bytes(drawing.png)
            Image.open(path / f"{number:02d}.png").resize((300, 300)).save(path / f"{number}.jpg")

    def shards(self, path: Path) -> None:
        write_shards(path, MANY, per_shard=300)

    def held_out(self, path: Path) -> None:
        write_shards(path, 60, per_shard=30)

    def labelled(self, path: Path) -> None:
        for number, drawing in enumerate(drawings()):
            label = path / drawing.caption.split()[-1]
            label.mkdir(parents=True, exist_ok=True)
            (label / f"{number}.png").write_bytes(drawing.png)

    def picture(self, path: Path) -> None:
        (drawing,) = drawings(1)
        path.with_suffix(".png").write_bytes(drawing.png)
        Image.open(path.with_suffix(".png")).save(path)

    def texts(self, path: Path) -> None:
        path.write_text("".join(f"{one.caption}\n" for one in drawings(20)), encoding="utf-8")

    def classes(self, path: Path) -> None:
        labels = sorted({one.caption.split()[-1] for one in drawings()})
        path.write_text("".join(f"{label}\ta {label}\n" for label in labels), encoding="utf-8")

    def prompts(self, path: Path) -> None:
        path.write_text("{}\na drawing of {}\n", encoding="utf-8")

    def keys(self, path: Path) -> None:
        path.write_text("PHOTOS/even/0000.png\nshards/000000000\n", encoding="utf-8")

    def token(self, path: Path) -> None:
        path.write_text(self._environment["RAY_AUTH_TOKEN"], encoding="utf-8")

    def model(self, path: Path) -> None:
        shutil.copytree(self._model, path)

    def architecture(self, path: Path) -> None:
        path.write_text(json.dumps(ARCHITECTURE), encoding="utf-8")

    def embeddings(self, path: Path) -> None:
        shutil.copytree(self._embeddings, path)

    def images(self, path: Path) -> None:
        build_index(path, self._embeddings, shards=2, modality="image")

    def captions(self, path: Path) -> None:
        build_index(path, self._embeddings, shards=2, modality="text")

    def training_file(self, path: Path) -> None:
        """PaddleClas's, with a model that is tiny and one epoch of small batches."""
        text = CLIP_YAML.read_text(encoding="utf-8")
        for found, put in _SMALLER.items():
            assert found in text, found
            text = text.replace(found, put)
        path.write_text(text, encoding="utf-8")
        tiny = ARCHITECTURE | {"embed_dim": 512}
        tiny["text_cfg"] = ARCHITECTURE["text_cfg"] | {"context_length": 77}
        (path.parent / "paddle.json").write_text(json.dumps(tiny), encoding="utf-8")
        for split in ("train", "eval"):
            write_shards(path.parent / "mscoco" / split)

    def query_file(self, path: Path) -> None:
        shutil.copy(PADDLE_QUERIES, path)

    def laion(self, path: Path) -> None:
        """Shards whose rows have more columns; some rows are to be left out."""
        path.mkdir(parents=True)
        for number in range(3):
            with tarfile.open(path / f"{number:05d}.tar", "w") as tar:
                for place, drawing in enumerate(drawings(16)):
                    key = f"{number:05d}{place:04d}"
                    flag = "NSFW" if place % 4 == 0 else "UNLIKELY"
                    row = {"key": key, "caption": drawing.caption, "width": 512, "NSFW": flag}
                    write_member(tar, f"{key}.json", json.dumps(row).encode())
                    write_member(tar, f"{key}.png", drawing.png)

    def bucket(self, path: Path) -> None:
        write_shards(path, 48)

    def demo(self, _: Path) -> None:
        """What the file of this name serves."""
        self.images(self._folder / "clipray-demo/index-images")
        self.captions(self._folder / "clipray-demo/index-texts")

    def published(self, _: Path) -> None:
        self.images(self._folder / "bucket/idx")
        (self._folder / "read_keys").write_text("key", encoding="utf-8")


_SMALLER = {
    "epochs: 120": "epochs: 1",
    "warmup_epoch: 10": "warmup_epoch: 0",
    "batch_size: 256": "batch_size: 20",
    "num_workers: 4": "num_workers: 0",
    "CLIP_vit_base_patch32_224_with_TextEncoder": "paddle.json",
}

_MAKES = r"(--output|--work|--to|index(\.py)? build .*--index)"

_FURNITURE = {
    "tiny.json": Place.architecture,
    "PHOTOS": Place.photos,
    "NEW_PHOTOS": Place.new_photos,
    "photos": Place.jpegs,
    "SHARDS shards": Place.shards,
    "HELD_OUT": Place.held_out,
    "PICTURES": Place.labelled,
    "a.jpg cat.jpg query.jpg": Place.picture,
    "texts.txt captions.txt queries.txt": Place.texts,
    "classes.txt": Place.classes,
    "prompts.txt": Place.prompts,
    "gone.txt": Place.keys,
    "TOKEN": Place.token,
    "MODEL": Place.model,
    "EMB EMB2": Place.embeddings,
    "IDX": Place.images,
    "IDX_TEXTS": Place.captions,
    "CLIP.yaml": Place.training_file,
    "inference_clip.yaml": Place.query_file,
    "bucket/laion": Place.laion,
    "bucket/shards": Place.bucket,
    "bucket/idx replicated.yaml autoscaling.yaml gpu.yaml": Place.published,
    "serve_configs/local.yaml": Place.demo,
}


def _asked_before_begun(blocks: list[Block]) -> list[str]:
    """A service of IDX, where the page asks one that it does not start."""
    before, asked, _ = "".join(block.text for block in blocks).partition("//127.0.0.1:8000")
    begun = re.search(r"^(clipray serve --index|serve run)", before, re.MULTILINE)
    return ["clipray serve --index NAME=IDX\n"] if asked and not begun else []


def _file_of(block: Block) -> str:
    """The name that a file of the page has, in its first line."""
    found = re.match(r"# ([\w.-]+\.yaml)\n", block.text)
    assert found, f"{block.where}: a YAML block begins with its name, as in '# mine.yaml'"
    return found[1]


def is_file(block: Block) -> bool:
    return block.language == "yaml" and re.match(r"# [\w.-]+\.yaml\n", block.text) is not None
