"""jobs/coming_from.md names what exists, and its script takes over vectors that are there."""

import re
import shlex
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import cli
from clipray.config import load_config
from clipray.index import Index
from clipray.query import Query
from clipray.search import find
from tests.handmade import build_index

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "jobs/coming_from.md").read_text(encoding="utf-8")
COMMANDS = {
    "clip-retrieval": ("embed", "index build", "search", "serve"),
    "open_clip": ("train",),
    "A vector database": ("index build", "index remove", "search", "serve"),
    "A hand-written FastAPI + Faiss server": ("index build", "embed", "serve"),
}
TRAIN = {"input": ("shards",), "output": "model", "model": "ViT-B-32"}


def sections():
    """Text by heading."""
    found = re.split(r"^## (.+)$", PAGE, flags=re.MULTILINE)[1:]
    return dict(zip(found[::2], found[1::2], strict=True))


def cells(section):
    """Of each table with a column `here`, the last cells."""
    rows = re.findall(r"^\|.*\| ([^|]+) \|$", sections()[section], re.MULTILINE)
    return rows[1 + rows.index("here") :]


def spans(section):
    """What is set as code in them, by row."""
    return [re.findall(r"`([^`]+)`", cell) for cell in cells(section)]


def parser(command):
    kind, _ = cli.COMMANDS[command].load()
    return cli._parser(command, cli.COMMANDS[command], kind)


def takes(command, words):
    """Whether a command takes these words, be they options without their values."""
    known = parser(command)
    if all(word.startswith("-") for word in words):
        return known._option_string_actions.keys() >= set(words)
    try:
        return bool(known.parse_args(words))
    except SystemExit:
        return False


@pytest.mark.parametrize("section", COMMANDS)
def test_every_option_and_command_of_a_table_exists(section):
    words = [shlex.split(span) for row in spans(section) for span in row if "--" in span]
    assert len(words) > 5
    for given in words:
        if given[0] == "clipray":
            name, rest = cli._split(given[1:])
            assert takes(name, rest), given
        else:
            assert any(takes(command, given) for command in COMMANDS[section]), given


@pytest.mark.parametrize("section", COMMANDS)
def test_every_command_without_options_exists(section):
    named = re.findall(r"`clipray ([a-z ]+)`", sections()[section])
    assert set(named) <= cli.COMMANDS.keys() | {"paddle"}


def test_every_key_of_training_exists_and_takes_its_value():
    kind, _ = cli.COMMANDS["train"].load()
    known, checked = {key for key, _ in cli._keys(kind)}, 0
    for row in spans("open_clip"):
        given = [span for span in row if re.fullmatch(r"[a-z_]+\.[a-z0-9_.]+|[a-z_.]+: \S+", span)]
        keys = {span.partition(":")[0] for span in given}
        assert keys <= known, keys - known
        load_config(kind, overrides=values(given), options=TRAIN)
        checked += len(keys)
    assert checked > 35


def values(spans):
    return [span.replace(": ", "=") for span in spans if ": " in span]


def test_every_address_of_a_table_exists():
    source = "".join(file.read_text() for file in (ROOT / "clipray/serve").glob("*.py"))
    routes = re.findall(r'@app\.(get|post)\(\s*"(/[^"]*)"', source)
    known = {f"{verb.upper()} {re.sub('{.*', '', path)}" for verb, path in routes}
    named = re.findall(r"`(GET|POST) (/[a-z/-]*)", "".join(sections().values()))
    assert len(set(named)) > 8
    assert {f"{verb} {path}" for verb, path in named} <= known


def test_the_script_takes_over_what_clip_retrieval_wrote(model, encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = ["a red ring", "a blue square", "a green star", "a dog"]
    vectors = encoder.encode_texts(texts).astype(np.float16)
    write_theirs(0, vectors[:3], [f"pictures/{text}" for text in texts[:3]], texts[:3])
    write_theirs(1, 2 * vectors[3:], ["pictures/dog"], texts[3:])
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    theirs = 'ModelSource(name="ViT-B-32", pretrained="laion2b_s34b_b79k")'
    assert theirs in script
    exec(script.replace(theirs, f'ModelSource(name="{model}")'), {})
    build_index(tmp_path / "IDX3", tmp_path / "ADOPTED")
    index = Index.open(tmp_path / "IDX3")
    assert len(index) == 4
    for key, text in zip(
        ["pictures/a red ring", "pictures/dog"], ["a red ring", "a dog"], strict=True
    ):
        (found,) = find(index, encoder, Query(text=text, k=1))
        assert (found.key, found.columns["caption"]) == (key, text)
        assert found.score == pytest.approx(1, abs=2e-3)


def write_theirs(number, vectors, keys, captions):
    """A part as `clip-retrieval inference` names its files."""
    for name in ("img_emb", "metadata"):
        Path("THEIRS", name).mkdir(parents=True, exist_ok=True)
    np.save(f"THEIRS/img_emb/img_emb_{number}.npy", vectors)
    rows = pa.table({"image_path": keys, "caption": captions})
    pq.write_table(rows, f"THEIRS/metadata/metadata_{number}.parquet")
