"""jobs/troubleshooting.md quotes what clipray says, word for word."""

import ast
import re
import socket
from functools import cache
from pathlib import Path

import pytest

from clipray.cli import main
from clipray.client import Client
from clipray.errors import ClipRayError
from clipray.serve.args import Listen
from clipray.serve.front import bound
from clipray.serve.keys import Keys
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

ROOT = Path(__file__).parents[1]
HOLE = "\0"  # where a template is filled in
PLACEHOLDER = re.compile(r"(…|\b[A-Z][A-Z_]*\b)")
QUOTED = re.compile(r"^- (`+)(.+?)\1$", re.MULTILINE)
MESSAGES = tuple(
    message
    for _, message in QUOTED.findall((ROOT / "jobs/troubleshooting.md").read_text(encoding="utf-8"))
)


@cache
def templates():
    """Every text in the source that could be a message, with holes."""
    files = (ROOT / "clipray").rglob("*.py")
    trees = (ast.parse(file.read_text(encoding="utf-8")) for file in files)
    return {found for tree in trees for found in texts(tree)}


def texts(tree):
    whole = [node for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    pieces = {id(piece) for node in whole for piece in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield "".join(
                piece.value if isinstance(piece, ast.Constant) else HOLE for piece in node.values
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = "" if id(node) in pieces else node.value
            yield re.sub(r"%(\.\d)?[sdrfg]", HOLE, text)  # as logging fills them


def is_said(message, known):
    """Whether one of the texts is the message, each placeholder standing for a hole."""
    pattern = re.compile(filled(message, lambda word: f"(?:{HOLE}|{word})"))
    return any(pattern.fullmatch(text) for text in known)


def filled(message, expected):
    """A pattern for a message; `expected` gives that of each word in capitals."""
    fixed, words = PLACEHOLDER.split(message)[::2], PLACEHOLDER.findall(message)
    holes = [".*" if word == "…" else expected(word) for word in words]
    return "".join(re.escape(text) + hole for text, hole in zip(fixed, [*holes, ""], strict=True))


@pytest.mark.parametrize("message", MESSAGES)
def test_every_message_of_the_page_stands_in_the_source(message):
    assert len(PLACEHOLDER.sub("", message)) > 8
    assert is_said(message, templates())


@pytest.mark.parametrize("message", MESSAGES)
def test_a_message_that_was_reworded_is_noticed(message):
    word = max(re.findall(r"[a-z]{3,}", message), key=len)
    assert not is_said(message, {text.replace(word, "else") for text in templates()})


def test_the_page_has_no_message_twice():
    assert len(MESSAGES) == len(set(MESSAGES)) > 40


@pytest.fixture
def world(tmp_path, monkeypatch, photos):
    """A working directory with pictures, nothing, an index, and one of which a byte was changed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    (tmp_path / "PHOTOS").symlink_to(photos)
    (tmp_path / "EMPTY").mkdir()
    write_embeddings(tmp_path / "EMB", cut_parts(random_halves(20), 2))
    for name in ("IDX", "CHANGED"):
        build_index(tmp_path / name, tmp_path / "EMB")
    (vectors,) = (tmp_path / "CHANGED").rglob("vectors.npy")
    vectors.write_bytes(vectors.read_bytes()[:-1] + b"?")
    return tmp_path


EMBED = "embed --output OUT --workers 0 --input"
B32 = "--model ViT-B-32 --pretrained openai"
TRAIN = "train --input PHOTOS --output MODEL --model ViT-B-32"


@pytest.mark.parametrize(
    ("command", "begins"),
    [
        (f"{EMBED} none {B32}", "PATH: no such folder or file"),
        (f"{EMBED} none/* {B32}", "PATTERN: matches nothing"),
        (f"{EMBED} EMPTY {B32}", "PATH: no image and no .tar in it"),
        (f"{EMBED} PHOTOS --input photos=EMPTY {B32}", "two inputs are called"),
        (f"{EMBED} none://x {B32}", "URI: cannot be opened"),
        (f"{EMBED} PHOTOS --model ViT-B-23", "model 'NAME': neither"),
        (f"{EMBED} PHOTOS --model ViT-B-32", "model 'NAME' has no weights"),
        (f"{EMBED} PHOTOS {B32} --precision int8", "precision int8"),
        (f"embed --output PHOTOS --workers 0 --input PHOTOS {B32}", "PATH: holds something"),
        (f"{TRAIN} -o loader.batch_sise=3", "…unknown key 'KEY'…"),
        (f"{TRAIN} -o loader.batch_size", "-o OVERRIDE: expected"),
        (TRAIN, "loader.batch_size: SAMPLES samples"),
        ("index build --embeddings PHOTOS --index NEW", "PATH: no embeddings folder"),
        ("index build --embeddings EMB --index IDX", "PATH: holds an index"),
        ("index publish --index IDX --to folder", "to: expected a URI"),
        ("search --index IDX --key none", "key 'KEY': no row"),
        ("search --index IDX --key s/1 --columns none", "no column NAME"),
        ("search --index CHANGED --key s/1", "PATH: its sha256"),
        ("search --index http://127.0.0.1:1/x --key s/1", "URI: cannot be read"),
    ],
)
def test_a_command_says_what_the_page_quotes(command, begins, world, capsys):
    assert main(command.split()) in (1, 2)
    told = capsys.readouterr().err.splitlines()[-1]
    assert re.search(f"^clipray: {shown(begins)}$", told), told


def shown(begins):
    """What a message of the page looks like when it is printed."""
    (message,) = (one for one in MESSAGES if one.startswith(begins))
    return filled(message, lambda word: ".*")


def test_what_a_service_says_is_what_the_page_quotes():
    keys = Keys.of(["r" * 32])
    assert re.fullmatch(shown("no key given"), keys.refusal("read", None, local=True).message)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ClipRayError, match=f"^{shown('port PORT on HOST')}$"):
            bound(Listen(port=port), shared=False)
    told = pytest.raises(ClipRayError, match=f"^{shown('WHERE: no answer')}")
    with Client(f"http://127.0.0.1:{port}", retries=0) as client, told:
        client.search("a dog")
