"""The commands on an index that stands, as they are typed: what they say, and how they end."""

import json
import shutil

import numpy as np
import pytest

from clipray.cli import main
from clipray.index import Index
from clipray.index.manifest import IndexFolder
from tests.handmade import build_index, cut_parts, random_halves, write_embeddings

ROWS = 40


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("commands")
    columns = {n: {"n": list(range(20 * n, 20 * n + 20))} for n in range(2)}
    write_embeddings(root / "e", cut_parts(random_halves(ROWS), 2), columns)
    fresh = random_halves(3, seed=5)
    fresh[2] = 0
    write_embeddings(root / "more", [(["s/3", "new/0", "bad/0"], fresh)], {0: {"n": [3, 100, 7]}})
    build_index(root / "i", root / "e", "IVF4,Flat", shards=2)
    return root


@pytest.fixture
def index(made, tmp_path):
    shutil.copytree(made / "i", tmp_path / "i")
    return tmp_path / "i"


@pytest.fixture
def run(capsys):
    """Run a command; exit code, what it printed, what it said."""

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def rows(index):
    return set(Index.open(index).column("n"))


def test_append_adds_and_replaces(run, made, index):
    code, out, _ = run("index", "append", "--index", index, "--embeddings", made / "more")
    assert code == 3  # one row is left out
    assert "version 2, 2 rows came, 1 of them in the place of an older one; 41 rows now" in out
    assert "rejected 1: not a unit vector" in out
    assert rows(index) == {f"s/{row}" for row in range(ROWS)} | {"new/0"}
    fresh = random_halves(3, seed=5)
    np.testing.assert_array_equal(Index.open(index).find("s/3"), fresh[0].astype(np.float32))


def test_only_new_leaves_out_what_came_in_before(run, made, index):
    arguments = ("index", "append", "--index", index, "--only-new", "--embeddings")
    code, out, _ = run(*arguments, made / "e")
    assert (code, "version 1, 0 rows came" in out) == (0, True)
    assert "version 2, 2 rows came" in run(*arguments, made / "more")[1]
    assert "version 2, 0 rows came" in run(*arguments, made / "more")[1]
    assert len(IndexFolder(index).read().parts) == 3


def test_append_refuses_what_does_not_belong(run, made, index, tmp_path):
    other = write_embeddings(tmp_path / "wide", [(["a"], random_halves(1, dim=8))])
    code, _, err = run("index", "append", "--index", index, "--embeddings", other)
    assert code == 2
    assert f"the model of {other} is none (" in err
    both = write_embeddings(
        tmp_path / "both", [(["a"], random_halves(1))], texts=[random_halves(1)]
    )
    arguments = ("--embeddings", both, "--modality", "text")
    code, _, err = run("index", "append", "--index", index, *arguments)
    assert (code, "text vectors, but" in err) == (2, True)
    nothing = write_embeddings(tmp_path / "zero", [(["a"], np.zeros((1, 16), np.float16))])
    code, _, err = run("index", "append", "--index", index, "--embeddings", nothing)
    assert (code, "no usable row" in err) == (2, True)
    assert IndexFolder(index).versions() == [1]


def test_remove_takes_keys_ids_lines_and_filters(run, index, tmp_path):
    lines = tmp_path / "gone.txt"
    lines.write_text("s/0\ns/1\n\nnobody\n", encoding="utf-8")
    code, out, _ = run("index", "remove", "--index", index, "--keys", lines, "--key", "s/2")
    assert code == 0
    assert "3 rows removed, 37 rows now" in out
    assert "in no row: 1, such as nobody" in out
    number = Index.open(index).search(Index.open(index).find("s/9")[None], k=1)[0].ids[0]
    code, out, _ = run("index", "remove", "--index", index, "--id", number)
    assert "1 rows removed" in out
    code, out, _ = run("index", "remove", "--index", index, "--filter", '{"n": {"$gte": 30}}')
    assert "10 rows removed, 26 rows now" in out
    assert rows(index) == {f"s/{row}" for row in range(3, 30)} - {"s/9"}
    before = IndexFolder(index).versions()
    code, out, _ = run("index", "remove", "--index", index, "--key", "s/0")
    assert (code, "0 rows removed" in out) == (0, True)
    assert IndexFolder(index).versions() == before  # nothing was done, so no version


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "give --keys, --key, --id or --filter"),
        (("--filter", '{"width": 3}'), "no column width; there are id, key, n"),
        (("--filter", '{"n": {"$foo": 3}}'), "unknown operator '$foo'"),
        (("--keys", "none.txt"), "none.txt: no such file"),
    ],
)
def test_remove_refuses_by_name(run, index, arguments, told):
    code, _, err = run("index", "remove", "--index", index, *arguments)
    assert code == 2
    assert told in err
    assert IndexFolder(index).versions() == [1]


def test_removing_much_compacts_unless_told_not_to(run, index):
    half = '{"n": {"$lt": 20}}'
    code, out, _ = run("index", "remove", "--index", index, "--filter", half, "--no-compact")
    assert (code, IndexFolder(index).read().dead) == (0, 20)
    code, out, _ = run("index", "remove", "--index", index, "--key", "s/20")
    manifest = IndexFolder(index).read()
    assert (manifest.verb, manifest.dead, manifest.rows) == ("compact", 1, 19)
    code, out, _ = run("index", "compact", "--index", index)
    assert "19 rows in 1 segments of 2 shards" in out


def test_everything_may_be_removed_and_come_again(run, made, index):
    run("index", "remove", "--index", index, "--filter", '{"n": {"$gte": 0}}')
    assert len(Index.open(index)) == 0
    assert not Index.open(index).search(np.ones((2, 16), np.float32))[0].items
    run("index", "append", "--index", index, "--embeddings", made / "e")
    assert rows(index) == {f"s/{row}" for row in range(ROWS)}


def test_compact_cuts_shards_anew(run, index):
    code, out, _ = run("index", "compact", "--index", index, "--shards", 3)
    assert code == 0
    assert "40 rows in 3 segments of 3 shards (before: 2 segments)" in out
    code, _, err = run("index", "compact", "--index", index, "--shards", 50)
    assert (code, "there are 40 rows" in err) == (2, True)
    assert rows(index) == {f"s/{row}" for row in range(ROWS)}


def test_info_says_what_it_is(run, made, index):
    run("index", "append", "--index", index, "--embeddings", made / "more")
    code, out, _ = run("index", "info", "--index", index)
    assert code == 0
    assert "version 2 of 2 on disk, by append" in out
    assert "41 image rows of 16 dimensions, 1 dead" in out
    assert "method IVF4,Flat (asked for)" in out
    assert "shard 1: 20 rows" in out or "shard 0: 20 rows" in out
    told = json.loads(run("index", "info", "--index", index, "--version", 1, "--json")[1])
    assert (told["version"], told["rows"], len(told["shards"])) == (1, 40, 2)
    code, _, err = run("index", "info", "--index", index, "--version", 9)
    assert (code, "no version 9, only [1, 2]" in err) == (2, True)


def test_verify_reads_all_files_and_names_the_damaged_one(run, index):
    code, out, _ = run("index", "verify", "--index", index)
    assert (code, "version 1 is whole (9 files" in out) == (0, True)
    path = next(index.glob("segments/*/vectors.npy"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    code, out, _ = run("index", "verify", "--index", index)
    assert code == 1
    assert f"{path}: its sha256 is not" in out


def test_rollback_and_gc(run, index):
    run("index", "remove", "--index", index, "--key", "s/0")
    code, out, _ = run("index", "rollback", "--index", index, "--version", 1)
    assert (code, "version 3 is version 1, 40 rows" in out) == (0, True)
    assert "s/0" in rows(index)
    (bitmap,) = (index / "deletions").iterdir()
    size = bitmap.stat().st_size
    code, out, _ = run("index", "gc", "--index", index, "--json")
    told = json.loads(out)
    assert (code, told["versions"]) == (0, [3])
    assert told["freed"] > size
    assert not bitmap.exists()
    code, _, err = run("index", "rollback", "--index", index, "--version", 1)
    assert (code, "no version 1, only [3]" in err) == (2, True)


def test_a_rollback_to_a_damaged_version_is_refused(run, index):
    run("index", "remove", "--index", index, "--key", "s/0")
    path = next(index.glob("segments/*/rows.arrow"))
    path.unlink()
    code, _, err = run("index", "rollback", "--index", index, "--version", 1)
    assert (code, f"{path}: missing" in err) == (1, True)
    assert IndexFolder(index).versions() == [1, 2]


def test_tune_stores_what_it_measured(run, index):
    code, out, _ = run("index", "tune", "--index", index, "--recall", 0.9)
    assert code == 0
    assert "nprobe  efSearch  rescore  recall image  recall text" in out
    manifest = IndexFolder(index).read()
    assert (manifest.verb, manifest.tuning.target, manifest.tuning.reached) == ("tune", 0.9, True)
    code, out, _ = run("index", "info", "--index", index)
    assert "recall@10 measured: image" in out


def test_tuning_an_exact_index_is_nothing(run, made, tmp_path):
    build_index(tmp_path / "flat", made / "e", "Flat")
    code, out, _ = run("index", "tune", "--index", tmp_path / "flat")
    assert (code, "nothing to tune" in out) == (0, True)
    assert IndexFolder(tmp_path / "flat").versions() == [1]


@pytest.mark.parametrize("verb", ["append", "remove", "compact", "info", "verify", "gc", "tune"])
def test_no_index_is_told(run, made, tmp_path, verb):
    more = {"append": ("--embeddings", made / "e"), "remove": ("--key", "s/0")}
    code, _, err = run("index", verb, "--index", tmp_path / "none", *more.get(verb, ()))
    assert code == 2
    assert "no index folder; `clipray index build` writes one" in err
    assert not (tmp_path / "none").exists()
