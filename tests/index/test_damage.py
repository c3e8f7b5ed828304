"""Damaged files: each is found and named, the other shards go on, and no write makes it worse."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

import numpy as np
import pytest

from clipray import storage
from clipray.cli import main
from clipray.embeddings import Parts
from clipray.errors import ClipRayError, DamagedError
from clipray.index import Index, appending
from clipray.index.appending import append_parts
from clipray.index.compaction import compact
from clipray.index.construct import IndexOptions, construct
from clipray.index.deletions import Doomed
from clipray.index.history import IndexGcConfig, IndexRollbackConfig, gc, rollback
from clipray.index.inspection import IndexInfoConfig, IndexVerifyConfig, info, verify
from clipray.index.manifest import IndexFolder
from clipray.index.remove import remove_rows
from clipray.index.table import row_ids
from clipray.index.workers import Here
from clipray.manifest import digest, encode_json
from tests.careless import without_fsync
from tests.handmade import random_halves, write_embeddings
from tests.mounts import read_only, require_mounts, run_mounted

DIM, ROWS = 8, 64
SHARDS = range(3)
PAGE = 4096
CODEC = -1  # as `verify` numbers what all shards share


@dataclass(frozen=True)
class World:
    """An index of which the content is known."""

    root: Path
    shards: tuple[dict, ...]  # key → float16 vector

    @property
    def folder(self):
        return IndexFolder(self.root / "index")

    @property
    def rows(self):
        return {key: vector for shard in self.shards for key, vector in shard.items()}

    def files(self):
        """Shard and path of every file of the newest version but its manifest."""
        manifest = self.folder.read()
        for number, shard in enumerate(manifest.shards):
            for segment in shard.segments:
                for path, _ in self.folder.files(segment):
                    yield number, path
        yield CODEC, self.folder.codecs / manifest.codec.name

    def copy(self, root):
        shutil.copytree(self.root, root, dirs_exist_ok=True)
        return World(root, self.shards)


def embedded(root, keys, seed):
    vectors = random_halves(len(keys), DIM, seed)
    write_embeddings(root, [(keys, vectors)], {0: {"note": [f"of {key}" for key in keys]}})
    return dict(zip(keys, vectors, strict=True))


def append(folder, embeddings):
    return append_parts(folder, Parts.open(embeddings), Here(folder.root)).manifest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three shards of IVF, two appended segments, and deletions on all five."""
    root = tmp_path_factory.mktemp("damage") / "whole"
    keys = [[f"{shard}/{n:02d}" for n in range(ROWS)] for shard in SHARDS]
    parts = [(keys[shard], random_halves(ROWS, DIM, shard)) for shard in SHARDS]
    notes = {shard: {"note": [f"of {key}" for key in keys[shard]]} for shard in SHARDS}
    write_embeddings(root / "first", parts, notes)
    shards = [dict(zip(*part, strict=True)) for part in parts]
    fresh = [f"n/{n}" for n in range(6)]
    more = embedded(root / "more", ["0/03", "1/05", "2/07", *fresh], 5)
    last = embedded(root / "last", [f"m/{n}" for n in range(9)], 6)
    embedded(root / "next", ["0/00", "n/0", "z/0"], 7)
    gone = ("0/10", "1/11", "2/12", "n/2", "m/3")
    folder = IndexFolder(root / "index")
    with without_fsync():
        options = IndexOptions(method="IVF4,Flat", shards=len(shards))
        made = construct(Parts.open(root / "first"), folder, options, Here(folder.root))
        assert folder.commit(made.manifest)
        made.ledger.clear()
        append(folder, root / "more")
        append(folder, root / "last")
        remove_rows(folder, Doomed(ids=row_ids(gone)), Here(folder.root))
    shards[0] |= more
    shards[1] |= last
    for shard in shards:
        for key in (*gone, *(set(more) - set(fresh) if shard is not shards[0] else ())):
            shard.pop(key, None)
    return World(root, tuple(shards))


@pytest.fixture
def world(whole, tmp_path):
    with without_fsync():
        yield whole.copy(tmp_path)


def best(rows, query, k):
    """Keys and scores by brute force."""
    unit = (query / np.linalg.norm(query)).astype(np.float32).astype(np.float64)
    scores = (np.stack(list(rows.values())).astype(np.float64) @ unit).astype(np.float32)
    keys = list(rows)
    order = np.lexsort((row_ids(keys), -scores))[:k]
    return [(keys[place], float(scores[place])) for place in order]


def check_answers(index, rows):
    assert len(index) == len(rows)
    queries = random_halves(3, DIM, 9).astype(np.float64)
    for query, found in zip(queries, index.search(queries, len(rows) + 1), strict=True):
        assert [(match.key, match.score) for match in found] == best(rows, query, len(rows))


def content(folder, version=None):
    index = Index.open(folder.root, version)
    return {key: index.find(key).astype(np.float16).tobytes() for key in index.column("note")}


def in_bytes(rows):
    return {key: vector.tobytes() for key, vector in rows.items()}


def flip(place, bit=0):
    """Change one bit of a file; `place` is a byte from its start, its end, or a share of it."""

    def change(data):
        at = int(place * len(data)) if isinstance(place, float) else place
        data[at] ^= 1 << bit
        return data

    return change


def zero_page(data):
    start = len(data) // 2 // PAGE * PAGE
    data[start : start + PAGE] = bytes(len(data[start : start + PAGE]))
    return data


CHANGES = {
    "first byte": flip(0),
    "early": flip(5, 6),
    "length of a header": flip(8, 7),
    "size": flip(16, 3),
    "high bit of a size": flip(23, 7),
    "a third": flip(0.34, 4),
    "middle": flip(0.5, 2),
    "late": flip(0.9, 5),
    "last byte": flip(-1, 1),
    "cut to nothing": lambda data: b"",
    "cut in half": lambda data: data[: len(data) // 2],
    "cut by a byte": lambda data: data[:-1],
    "a byte more": lambda data: data + b"\0",
    "zeroed page": zero_page,
    "missing": lambda data: None,
}


def put(path, data):
    path.unlink(missing_ok=True)
    if data is not None:
        path.write_bytes(data)


def peer(world, path):
    """Another file of the same kind, of the same size where there is one."""
    kinds = [other for _, other in world.files() if other != path]
    same = [o for o in kinds if o.name == path.name or {o.parent, path.parent} == {path.parent}]
    same = same or [other for other in kinds if other.name == "index.faiss"]
    return min(same, key=lambda other: abs(other.stat().st_size - path.stat().st_size))


def check_found(world, path, shard):
    """Opening names the file, `verify` names the file and its shard, the other shards answer."""
    root = world.folder.root
    with pytest.raises(DamagedError) as raised:
        Index.open(root)
    assert str(raised.value).startswith(f"{path}: ")
    assert [number for number, line in check_verified(root, path)] == [shard]
    index = Index.open(root, partial=True)
    assert index.coverage.missing == (shard,)
    assert index.coverage.shards_ok == len(SHARDS) - 1
    left = {}
    for number in set(SHARDS) - {shard}:
        left |= world.shards[number]
    check_answers(index, left)


def check_verified(root, path):
    report = verify(IndexVerifyConfig(index=root))
    assert report.exit_code == 1
    assert str(path) in report.summary()
    lines = [(number, line) for number, found in report.damage.items() for line in found]
    assert all(line.startswith(f"{path}: ") for _, line in lines)
    return lines


def check_codec_found(world, path):
    """Searching goes on without it."""
    root = world.folder.root
    check_answers(Index.open(root), world.rows)
    ((number, line),) = check_verified(root, path)
    assert number == CODEC
    assert "appending does not" in line


def test_the_whole_index_is_what_the_test_says(world):
    check_answers(Index.open(world.folder.root), world.rows)
    for number, shard in enumerate(Index.open(world.folder.root).shards):
        assert len(shard) == len(world.shards[number])
    assert not verify(IndexVerifyConfig(index=world.folder.root)).damage
    kinds = {path.suffix for _, path in world.files()}
    assert kinds == {".faiss", ".arrow", ".npy"}
    assert len(list(world.files())) == 3 * 4 + 2 * 3 + 5 + 1
    same = [path.stat().st_size == peer(world, path).stat().st_size for _, path in world.files()]
    assert sum(same) > 20  # so that a swap of files is not told by their sizes alone


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_file_is_found_and_named(world, name):
    for shard, path in list(world.files()):
        data = path.read_bytes()
        put(path, CHANGES[name](bytearray(data)))
        if shard == CODEC:
            check_codec_found(world, path)
        else:
            check_found(world, path, shard)
        put(path, data)
    assert not verify(IndexVerifyConfig(index=world.folder.root)).damage


def test_the_file_of_another_segment_is_found_and_named(world):
    for shard, path in list(world.files()):
        data = path.read_bytes()
        put(path, peer(world, path).read_bytes())
        if shard == CODEC:
            check_codec_found(world, path)
        else:
            check_found(world, path, shard)
        put(path, data)


def test_two_files_that_changed_places_are_both_named(world):
    for shard, path in list(world.files()):
        other = peer(world, path)
        first, second = path.read_bytes(), other.read_bytes()
        put(path, second)
        put(other, first)
        report = verify(IndexVerifyConfig(index=world.folder.root))
        told = "\n".join(line for found in report.damage.values() for line in found)
        assert f"{path}: " in told
        assert f"{other}: " in told
        if shard != CODEC:
            with pytest.raises(DamagedError, match=r"\.(faiss|arrow|npy): "):
                Index.open(world.folder.root)
        put(path, first)
        put(other, second)


def test_a_file_that_the_disk_does_not_give_back_is_damaged(world, monkeypatch):
    shard, broken = next(iter(world.files()))
    read = Path.open

    def refuse(path, *arguments, **options):
        if path == broken:
            raise OSError(5, "Input/output error")
        return read(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", refuse)
    check_found(world, broken, shard)


def test_with_all_shards_damaged_nothing_is_opened(world):
    for shard, path in world.files():
        if shard != CODEC and path.name == "vectors.npy":
            put(path, None)
    with pytest.raises(DamagedError, match="none of its 3 shards is whole"):
        Index.open(world.folder.root, partial=True)


def refusal(call):
    """What an error of ours says; nothing when there is none."""
    try:
        call()
    except ClipRayError as error:
        return str(error)
    return ""


def removing(**doomed):
    return lambda world: remove_rows(world.folder, Doomed(**doomed), Here(world.folder.root))


WRITES = {
    "append": lambda world: append(world.folder, world.root / "next"),
    "remove by key": removing(ids=row_ids(["0/01", "1/01", "n/1"])),
    "remove by filter": removing(filter={"note": {"$in": ["of 2/01", "of m/1"]}}),
    "compact": lambda world: compact(world.folder, Here(world.folder.root)),
    "fewer shards": lambda world: compact(world.folder, Here(world.folder.root), shards=2),
}


@pytest.mark.parametrize("change", ["middle", "cut by a byte", "missing"])
@pytest.mark.parametrize("name", WRITES)
def test_a_write_names_the_damaged_file_or_does_not_need_it(world, name, change):
    folder = world.folder
    versions = folder.versions()
    WRITES[name](world)
    wanted = content(folder)
    assert wanted != in_bytes(world.rows) or name in {"compact", "fewer shards"}
    folder.version_file(folder.versions()[-1]).unlink()
    refused = 0
    for _, path in list(world.files()):
        data = path.read_bytes()
        put(path, CHANGES[change](bytearray(data)))
        told = refusal(lambda: WRITES[name](world))
        put(path, data)
        if told:
            assert told.startswith(f"{path}: ")
            assert folder.versions() == versions
            refused += 1
        else:
            assert content(folder) == wanted
            folder.version_file(folder.versions()[-1]).unlink()
        assert not list(folder.segments.glob(".*"))
    assert refused


def test_an_append_that_needs_the_codec_names_it(world, monkeypatch):
    monkeypatch.setattr(appending, "EXACT_UP_TO", 2)
    *_, (_, codec) = world.files()
    data = codec.read_bytes()
    for change in CHANGES.values():
        put(codec, change(bytearray(data)))
        with pytest.raises(DamagedError) as raised:
            append(world.folder, world.root / "next")
        assert str(raised.value).startswith(f"{codec}: ")
    put(codec, data)
    append(world.folder, world.root / "next")
    assert "z/0" in content(world.folder)


def newest(folder):
    return folder.version_file(folder.versions()[-1])


def check_never_skipped(world):
    """Whoever reads the newest version is told which file is bad and how to go back."""
    root, path = world.folder.root, newest(world.folder)
    versions, files = world.folder.versions(), _names(root)
    readers = [
        lambda: Index.open(root),
        lambda: Index.open(root, partial=True),
        lambda: info(IndexInfoConfig(index=root)),
        lambda: verify(IndexVerifyConfig(index=root)),
        *(lambda write=write: write(world) for write in WRITES.values()),
        lambda: gc(IndexGcConfig(index=root)),
        lambda: gc(IndexGcConfig(index=root, keep=2)),
    ]
    for read in readers:
        with pytest.raises(DamagedError) as raised:
            read()
        assert str(raised.value).startswith(f"{path}: ")
        assert "`clipray index rollback` can go back to [1, 2, 3]" in str(raised.value)
    assert world.folder.versions() == versions
    assert _names(root) == files


def _names(root):
    return sorted(path for path in root.rglob("*") if not storage.is_staging(path))


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "missing"])
def test_a_torn_newest_version_is_never_skipped_and_can_be_rolled_back(world, name):
    path = newest(world.folder)
    put(path, CHANGES[name](bytearray(path.read_bytes())))
    check_never_skipped(world)
    before = content(world.folder, 3)
    report = rollback(IndexRollbackConfig(index=world.folder.root, version=3))
    assert (report.version, report.parent) == (5, 3)
    assert content(world.folder) == before
    append(world.folder, world.root / "next")
    assert content(world.folder).keys() == before.keys() | {"z/0"}
    assert world.folder.versions() == [1, 2, 3, 4, 5, 6]


def test_no_bit_of_a_manifest_may_change(world):
    path = newest(world.folder)
    data = path.read_bytes()
    tree = json.loads(data)
    rng = np.random.default_rng(0)
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        put(path, changed)
        told = refusal(world.folder.read)
        assert told.startswith(f"{path}: ") if told else json.loads(changed) == tree, place


def test_an_older_manifest_in_the_place_of_the_newest_is_found(world):
    put(newest(world.folder), world.folder.version_file(2).read_bytes())
    check_never_skipped(world)


def test_without_its_newest_manifest_an_index_is_the_version_before(world):
    before = content(world.folder, 3)
    put(newest(world.folder), None)
    assert content(world.folder) == before
    append(world.folder, world.root / "next")
    assert world.folder.versions() == [1, 2, 3, 4]
    assert content(world.folder).keys() == before.keys() | {"z/0"}


@pytest.mark.parametrize(
    ("number", "advice"), [(1, "write the folder again"), (3, "update clipray")]
)
def test_a_manifest_of_another_format_says_what_to_do(world, number, advice):
    path = newest(world.folder)
    tree = json.loads(path.read_bytes()) | {"format": number}
    del tree["checksum"]
    put(path, encode_json(tree | {"checksum": digest(tree)}))
    check_never_skipped(world)
    with pytest.raises(DamagedError, match=f"format {number}, this clipray reads 2; {advice}"):
        Index.open(world.folder.root)


@pytest.mark.parametrize(
    ("method", "ending"),
    [
        ("IVF4,Flat", ".faiss"),
        ("HNSW32", ".faiss"),
        ("IVF4,PQ4x4fs", ".faiss"),
        ("Flat", ".npy"),
        ("Flat", ".arrow"),
    ],
)
def test_unverified_damage_is_refused_or_opens_but_takes_no_memory(tmp_path, method, ending):
    """A child changes the files and opens them, so that what crashes or swallows all is itself."""
    keys = [f"k/{n:03d}" for n in range(100)]
    embedded(tmp_path / "first", keys, 1)
    folder = IndexFolder(tmp_path / "index")
    with without_fsync():
        options = IndexOptions(method=method)
        made = construct(Parts.open(tmp_path / "first"), folder, options, Here(folder.root))
        assert folder.commit(made.manifest)
        remove_rows(folder, Doomed(ids=row_ids(keys[:3])), Here(folder.root))
    done = subprocess.run(
        [sys.executable, "-m", "tests.index.unverified", folder.root, ending],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).parents[2],
    )
    lines = done.stdout.splitlines()
    assert not done.returncode, (done.returncode, lines[-1:], done.stderr[-500:])
    *told, memory = map(json.loads, lines)
    assert memory < 200  # MB
    wrong = [(step, outcome) for step, outcome in told if outcome not in {"opened", "named"}]
    assert not wrong
    assert {outcome for _, outcome in told} == {"opened", "named"}


def test_a_read_only_folder_is_searched_but_not_written(world):
    require_mounts()
    run_mounted(read_only(world.folder.root), _use_read_only, world.root)


def _use_read_only(root):
    folder = IndexFolder(Path(root) / "index")
    index = Index.open(folder.root)
    assert len(index.search(np.ones((1, DIM)), 5)[0]) == 5
    assert not verify(IndexVerifyConfig(index=folder.root)).damage
    assert info(IndexInfoConfig(index=folder.root)).version == 4
    at = ["--index", str(folder.root)]
    for command in (
        ["append", *at, "--embeddings", f"{root}/next"],
        ["remove", *at, "--key", "0/00"],
        ["compact", *at],
        ["rollback", *at, "--version", "1"],
        ["gc", *at],
    ):
        with redirect_stderr(StringIO()) as told:
            assert main(["index", *command]) == 1
        assert told.getvalue() == f"clipray: {folder.lock}: Read-only file system\n"
    assert folder.versions() == [1, 2, 3, 4]
    assert len(index.search(np.ones((1, DIM)), 5)[0]) == 5
