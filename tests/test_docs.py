"""Every command of the documentation runs, each page from top to bottom, or elsewhere as told."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli
from ray.serve.scripts import cli as serve_cli

from clipray import cli
from clipray.config import load_config
from clipray.query import Query
from tests.furniture import Stock
from tests.heads import head
from tests.pages import PAGES, ROOT, Block, blocks, commands, named, read
from tests.walkthrough import Place, file_of

LANGUAGES = {"sh", "python", "yaml", "json", "text", "console", ""}
RUN = {"sh", "python"}

# Blocks that are not run here, by page and beginning: which test runs them, or why none can.
ELSEWHERE = {
    ("README.md", "make demo"): "the two commands of the CI; tests/demo",
    ("serve_configs/README.md", "export RAY_SERVE_ENABLE_HA"): "tests/serve/test_deploy.py",
    ("serve_configs/README.md", "ClipClient"): "tests/serve/test_knn_service.py",
    ("cluster/README.md", ". .venv/bin/activate"): "tests/test_cluster_walk.py",
    ("cluster/README.md", "(umask 077"): "tests/test_cluster_walk.py",
    ("cluster/README.md", "ray start --head"): "tests/test_cluster_walk.py",
    ("cluster/README.md", "ray start --block"): "tests/test_cluster_walk.py",
    ("cluster/README.md", "ray job submit"): "tests/test_cluster_walk.py",
    ("cluster/README.md", 'cat > "$WORK/serve'): "tests/test_cluster_walk.py",
    ("cluster/README.md", "serve shutdown"): "tests/test_cluster_walk.py",
    ("cluster/README.md", "docker build"): "wants three machines; tests/test_cluster_files.py",
    ("cluster/README.md", "pip install boto3"): "wants a cloud; tests/test_cluster_files.py",
    ("cluster/README.md", "kubectl create"): "wants Kubernetes; tests/test_cluster_files.py",
    ("cluster/README.md", "sed "): "wants Kubernetes; tests/test_cluster_files.py",
    ("cluster/autoscaling.md", "export RAY_ADDRESS"): "tests/test_autoscaling.py",
    ("cluster/autoscaling.md", "serve deploy"): "tests/test_autoscaling.py",
    ("tests/benchmarks/README.md", "make bench"): "an hour; tests/test_benchmarks.py",
}


def elsewhere(block: Block) -> bool:
    return any(block.page == page and block.text.startswith(text) for page, text in ELSEWHERE)


def run_here(page: str) -> list[Block]:
    """The blocks of a page that are run, in order; empty where none has a command."""
    found = [
        block
        for block in blocks(page)
        if (block.language in RUN or file_of(block)) and not elsewhere(block)
    ]
    return found if any(block.language in RUN for block in found) else []


WALKED = [page for page in PAGES if run_here(page)]
ALL = [block for page in PAGES for block in blocks(page)]
SHELL = [pytest.param(block, id=block.where) for block in ALL if block.language == "sh"]
CODE = [
    pytest.param(block, id=block.where)
    for block in ALL
    if block.language in {"python", "yaml", "json"}
]


@pytest.fixture(scope="module")
def cluster():
    with head(cpus=8) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def stock(model, embeddings, cluster):
    return Stock(model, embeddings, cluster.environment["RAY_AUTH_TOKEN"])


@pytest.mark.soak
@pytest.mark.parametrize("page", WALKED)
def test_every_command_of_the_page_runs(page, cluster, stock, tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "clipray"
    went = Place(folder, stock, cluster).walk(run_here(page))
    assert went.code == 0, went.said[-8000:]
    for block in run_here(page):  # also where one of them ends the shell
        assert f": ==== {block.where}\n" in went.said


# Without running them


def test_every_entry_of_the_table_is_one_block_and_names_a_test_that_exists():
    for (page, text), reason in ELSEWHERE.items():
        found = [block for block in blocks(page) if block.text.startswith(text)]
        assert found, f"{page}: no block begins with '{text}'"
        for test in re.findall(r"tests/[\w/.]+", reason):
            assert (ROOT / test).exists(), test


@pytest.mark.parametrize("page", PAGES)
def test_no_command_hides_in_a_block_that_is_not_run(page):
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{block.where}: ```{block.language}"
        if block.language != "sh":
            hidden = re.findall(r"^(?:clipray|ray|serve|make|curl) \S.*", block.text, re.MULTILINE)
            assert hidden == [], block.where


@pytest.mark.parametrize("block", SHELL)
def test_the_shell_takes_every_block(block):
    done = subprocess.run(
        ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", PAGES)
def test_clipray_takes_the_options_of_every_command(page, tmp_path):
    for block in blocks(page):
        if name := file_of(block):
            (tmp_path / name).write_text(block.text, encoding="utf-8")
    for words in typed(blocks(page)):
        for arguments in named(words, "clipray"):
            taken(arguments, [ROOT, tmp_path])


def test_what_is_shown_with_its_output_is_run_too():
    """With other values perhaps."""
    run: dict[str, set[str]] = defaultdict(set)
    for verb, options in shapes([block for page in PAGES for block in run_here(page)]):
        run[verb] |= options
    for block in ALL:
        if block.language == "console":
            for verb, options in shapes([block]):
                assert options <= run[verb], f"{block.where}: {verb} with {options - run[verb]}"


def shapes(found: list[Block]) -> Iterator[tuple[str, set[str]]]:
    """Of each clipray command its verb, and the names of its options."""
    for words in typed(found):
        for arguments in named(words, "clipray"):
            verb, rest = cli._split(arguments)
            yield verb, {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}


def typed(found: list[Block]) -> Iterator[list[str]]:
    """The words of all commands."""
    for block in found:
        yield from commands(block.typed)


def taken(arguments: list[str], folders) -> None:
    """Fail where clipray would refuse a command before it does anything."""
    name, rest = cli._split(arguments)
    assert name, arguments
    command = cli.COMMANDS[name]
    kind, _ = command.load()
    options = vars(cli._parser(name, command, kind).parse_args(rest))
    given, overrides = options.pop("config"), options.pop("override")
    del options["json"], options["verbose"]
    here = [folder / given for folder in folders if given and (folder / given).is_file()]
    if here or not given:
        load_config(kind, here[0] if here else None, overrides, options)


@pytest.mark.parametrize("page", PAGES)
def test_every_option_that_the_text_names_beside_a_command_exists(page):
    for span in re.findall(r"`(clipray [^`]+)`", without_blocks(read(page))):
        name, rest = cli._split(span.replace("…", "").split()[1:])
        if name and "|" not in span:
            command = cli.COMMANDS[name]
            known = cli._parser(name, command, command.load()[0])._option_string_actions
            options = {word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)}
            assert options <= known.keys(), span


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_the_text_names_exist(page):
    for module in re.findall(r"`python -m ([\w.]+)", without_blocks(read(page))):
        assert find_spec(module), module


def without_blocks(text: str) -> str:
    return re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
def test_ray_takes_the_options_of_every_command(page):
    for words in typed(blocks(page)):
        for program, group in (("ray", ray_cli), ("serve", serve_cli)):
            for arguments in named(words, program):
                name, *rest = (re.sub(r"\$\w+_PORT", "8000", word) for word in arguments)
                command = group.commands[name]
                if name == "job":
                    command, rest = command.commands[rest[0]], rest[1:]
                command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES)
def test_files_of_the_repository_that_a_command_names_exist(page):
    for words in typed(blocks(page)):
        for word in words:
            if re.fullmatch(r"(?:clipray|jobs|serve_configs|cluster|tests)/[\w./-]+", word):
                assert (ROOT / word).exists(), word


@pytest.mark.parametrize("page", PAGES)
def test_make_has_every_target(page):
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    for words in typed(blocks(page)):
        if words[0] == "make":
            assert set(words[1:]) <= set(targets)


@pytest.mark.parametrize("page", PAGES)
def test_modules_that_are_run_have_the_options(page):
    for words in typed(blocks(page)):
        if words[:2] == ["python", "-m"]:
            command = [sys.executable, *words[1:3], "--help"]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            options = {word for word in words[3:] if word.startswith("--")}
            assert options <= set(re.findall(r"--[\w-]+", done.stdout)), words


@pytest.mark.parametrize("page", PAGES)
def test_what_is_sent_to_the_service_is_a_query(page):
    for words in typed(blocks(page)):
        if words[0] == "curl" and "-d" in words:
            body = json.loads(words[words.index("-d") + 1])
            if any(word.endswith("/search") for word in words):
                assert Query.model_validate(body)


@pytest.mark.parametrize("block", CODE)
def test_python_yaml_and_json_are_well_formed(block):
    if block.language == "python":
        compile(block.text, block.where, "exec")
    elif block.language == "yaml":
        assert list(yaml.safe_load_all(block.text))
    else:
        json.loads(block.text)


# The checks themselves


def test_the_words_of_a_command_are_those_that_the_shell_makes():
    text = """
    # clipray no
    A=1 clipray x 'a b' "c; d" \\
      --k=v 2> log 2>&1 && echo "#" | sed s/a/b/ # clipray no
    (until curl "$(f | g)"; do true; done) &
    cat > "$W/f" <<END
    clipray no
END
    ray job submit --working-dir . -- python jobs/index.py build --index IDX
    """
    found = list(commands(text))
    assert found[:3] == [["clipray", "x", "a b", "c; d", "--k=v"], ["echo", "#"], ["sed", "s/a/b/"]]
    assert found[3:6] == [["until", "curl", "$(f | g)"], ["true"], ["done"]]
    assert found[6] == ["cat"]
    assert list(named(found[7], "clipray")) == [["index", "build", "--index", "IDX"]]


@pytest.mark.parametrize(
    "wrong",
    ["embed --inputs PHOTOS", "embeds", "index build --embeddings E --index I --method", "plan"],
)
def test_a_wrong_command_is_found(wrong, capsys):
    with pytest.raises((SystemExit, AssertionError, cli.ClipRayError)):
        taken(wrong.split(), [ROOT])
