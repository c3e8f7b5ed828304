"""The command line: help, options, exit codes, one clear line for what is wrong."""

import json
import subprocess
import sys
import time
from typing import Annotated

import pytest
from pydantic import PlainSerializer, TypeAdapter

from clipray.cli import COMMANDS, main


def run(capsys, *arguments):
    """Exit code, stdout, stderr of a command in this process."""
    try:
        code = main([str(argument) for argument in arguments])
    except SystemExit as ended:
        code = int(ended.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_help_lists_every_command_at_once():
    began = time.monotonic()
    shown = subprocess.run(
        [sys.executable, "-m", "clipray", "--help"], capture_output=True, text=True, check=True
    )
    assert all(name in shown.stdout for name in COMMANDS)
    assert time.monotonic() - began < 5  # torch and ray alone take longer to import


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_its_options(capsys, name):
    code, out, _ = run(capsys, *name.split(), "--help")
    assert code == 0
    assert "(required)" in out or name in ("demo", "doctor", "evaluate")
    assert "default" in out or name in ("index rollback", "index publish", "serve --check")


@pytest.mark.parametrize("half", ["index", "paddle"])
def test_help_of_half_a_name_lists_what_goes_on_from_it(capsys, half):
    code, out, _ = run(capsys, half, "--help")
    named = [name for name in COMMANDS if f"\n    {name}" in out]
    assert (code, named) == (0, [name for name in COMMANDS if name.startswith(f"{half} ")])


def test_a_search_prints_a_table_or_json(capsys, flat_index):
    code, out, err = run(capsys, "search", "--index", flat_index, "--text", "a ring", "-k", 2)
    assert (code, len(out.splitlines()), err) == (0, 2, "")
    code, out, _ = run(capsys, "search", "--index", flat_index, "--text", "a ring", "--json")
    assert code == 0
    assert len(json.loads(out)["matches"]) == 10


def test_options_win_over_overrides_and_those_over_the_file(capsys, flat_index, tmp_path):
    file = tmp_path / "search.yaml"
    file.write_text(f"index: {flat_index}\nkey: shards/000000000\nk: 1\n")
    command = ("search", "-c", file)
    assert len(run(capsys, *command)[1].splitlines()) == 1
    assert len(run(capsys, *command, "-o", "k=2")[1].splitlines()) == 2
    assert len(run(capsys, *command, "-o", "k=2", "-k", "3")[1].splitlines()) == 3


def test_an_interrupt_while_json_is_written_is_an_interrupt(capsys, flat_index, monkeypatch):
    def interrupted(report, **options):
        return TypeAdapter(Annotated[int, PlainSerializer(_interrupt)]).dump_json(1)

    monkeypatch.setattr("clipray.report.Report.model_dump_json", interrupted)
    code, out, err = run(capsys, "index", "info", "--index", flat_index, "--json")
    assert (code, out, err) == (130, "", "clipray: interrupted\n")


def _interrupt(value):
    raise KeyboardInterrupt


def test_evaluate_tells_recall(capsys, flat_index):
    code, out, _ = run(capsys, "evaluate", "--index", flat_index, "--json")
    metrics = json.loads(out)["metrics"]
    assert code == 0
    assert metrics["text_to_image_R@10"] >= metrics["text_to_image_R@1"] > 0.2


def wrong_uses(flat_index, photos, model, tmp_path):
    """Command and what its message names."""
    empty = tmp_path / "empty"
    empty.mkdir()
    typo = tmp_path / "typo.yaml"
    typo.write_text("epoch: 3\n")
    no_yaml = tmp_path / "no.yaml"
    no_yaml.write_text("a: [")
    out = tmp_path / "out"
    embed = ("embed", "--output", out, "--model", model)
    train = ("train", "--input", photos, "--output", out, "--model", "RN50")
    return [
        ((*embed, "--input", tmp_path / "none"), "no such folder"),
        ((*embed, "--input", empty), "no image and no .tar"),
        ((*embed, "--input", typo), "expected a folder"),
        ((*embed, "--input", f"{photos}/*.tar"), "matches nothing"),
        ((*embed, "--input", "foo://bucket/x"), "cannot be opened"),
        ((*embed, "--input", photos, "--filter", "{"), "not valid JSON"),
        ((*embed, "--input", photos, "--filter", '{"width": {"$gtt": 1}}'), "did you mean $gt"),
        ((*embed, "--input", photos, "--input", photos), "two inputs are called"),
        ((*embed, "--input", photos, "--batch-size", "0"), "batch_size"),
        ((*embed, "--input", photos, "--device", "gpu"), "device: "),
        (("embed", "--input", photos, "--output", out), "'model' is missing"),
        (("embed", "--input", photos, "--output", out, "--model", "ViT-B-23"), "ViT-B-32"),
        (("embed", "--input", photos, "--output", out, "--model", "ViT-B-32"), "no weights"),
        (("embed", "--input", photos, "--output", photos, "--model", model), "holds something"),
        (("train", "--input", photos, "--output", photos, "--model", "RN50"), "exists already"),
        ((*train, "-c", typo), "did you mean 'epochs'"),
        ((*train, "-c", no_yaml), "not valid YAML"),
        ((*train, "-c", tmp_path / "none.yaml"), "cannot be read"),
        ((*train, "-o", "optim.lrr=1"), "unknown key 'optim.lrr'"),
        ((*train, "-o", "optim.lr=fast"), "optim.lr"),
        ((*train, "-o", "batch_size=8"), "did you mean 'loader.batch_size'?"),
        ((*train, "-o", "optim.epoch=8"), "did you mean 'epochs'?"),
        ((*train, "-o", "evaluation.input=HELD"), "expected a list such as ['HELD']"),
        ((*train, "-o", "optim"), "expected section.key=value"),
        (("search", "--index", tmp_path, "--text", "a"), "no index folder"),
        (("search", "--index", flat_index), "exactly one of"),
        (("search", "--index", flat_index, "--image", typo), f"{typo}: not a readable image"),
        (("search", "--index", flat_index, "--text", "a" * 10_000), "at most 2000 characters"),
        (("search", "--index", flat_index, "--text", "a", "-k", "20000"), "equal to 10000 (found"),
        (("search", "--index", flat_index, "--key", "nobody"), "no row"),
        (("search", "--index", flat_index, "--txt", "a"), "unrecognized arguments"),
        (("index", "build", "--embeddings", photos, "--index", out), "no embeddings folder"),
        (("index", "built"), "'index built' is no command; did you mean 'index build'?"),
        (("index",), "'index' is no command; there are: index build"),
        (("-v", "search"), "unrecognized arguments: -v"),
        (("indexx",), "'indexx' is no command; there are: train, embed, "),
        (("searh", "--index", out), "'searh' is no command; did you mean 'search'?"),
        ((), "usage"),
        (("serve", "--index", tmp_path / "none"), "no index folder"),
        (("export", "--model", model, "--output", photos), "exists already"),
        (("export", "--model", model, "--output", out, "--towers", "text", "--precision", "int8"),
         "int8 is for image towers"),
        (("export", "--model", model, "--output", out, "--precision", "int4"), "'int8'"),
        ((*embed, "--input", photos, "--backend", "onnx"), "no exported folder"),
        ((*embed, "--input", photos, "--precision", "int8"), "only exported models have it"),
        ((*embed, "--input", photos, "--decode", "quick"), "invalid choice"),
        (("search", "--index", flat_index, "--text", "a", "--backend", "onnx"),
         "no exported folder"),
        (("demo", "--output", photos), "holds other things"),
    ]  # fmt: skip


@pytest.mark.usefixtures("ray_session")
def test_wrong_use_is_one_line_and_exit_code_2(capsys, flat_index, photos, model, tmp_path):
    before = sorted(photos.rglob("*"))
    for command, told in wrong_uses(flat_index, photos, model, tmp_path):
        code, out, err = run(capsys, *command)
        assert code == 2, (command, err)
        assert out == ""
        assert told in err, (command, err)
        assert "Traceback" not in err
        if command:
            assert len(err.strip().splitlines()) == 1, (command, err)
    assert sorted(photos.rglob("*")) == before
    assert not (tmp_path / "out").exists()


def test_help_shows_the_default_of_a_list_as_it_is_typed(capsys):
    shown = " ".join(run(capsys, "search", "--help")[1].split())
    assert "metadata to show; may be repeated (default: caption)" in shown


def test_help_lists_first_what_must_be_given(capsys):
    for name in ("embed", "search", "serve", "export"):
        shown = run(capsys, *name.split(), "--help")[1].partition("say more")[2]
        assert shown.rindex("(required)") < shown.index("(default:")
