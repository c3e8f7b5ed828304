"""The same samples, in whatever form img2dataset left them and wherever they lie."""

import json

import pyarrow.parquet as pq
import pytest

from clipray import uri
from clipray.dataset import find_shards
from clipray.shards import TarShard
from tests.drawing import drawings, write_files, write_parquets, write_shards

COUNT, PER_SHARD = 12, 5
WRITERS = {"webdataset": write_shards, "files": write_files, "parquet": write_parquets}


@pytest.fixture(params=WRITERS)
def output(request, tmp_path):
    return WRITERS[request.param](tmp_path / "out", COUNT, PER_SHARD)


def to_memory(root):
    """The same tree behind a URI."""
    remote = uri.at(f"memory://{root.parent.name}-{root.parent.parent.name}/{root.name}")
    for path in root.rglob("*"):
        if path.is_file():
            copy = remote / str(path.relative_to(root))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    return remote


def samples(root):
    """Key → (image, columns), read with the shards at hand."""
    read = {}
    for shard in find_shards([f"s={root}"]).shards:
        with shard.at_hand() as here:
            listing = here.list()
            assert listing.damage is None
            assert len(listing.entries) == shard.expected
            assert not any(entry.duplicate for entry in listing.entries)
            read |= {e.key: (e.read_image(), e.read_columns()) for e in listing.entries}
    return read


def expected():
    return {
        f"s/{number // PER_SHARD:05d}{number % PER_SHARD:04d}": drawing
        for number, drawing in enumerate(drawings(COUNT))
    }


@pytest.mark.parametrize("place", [lambda root: root, to_memory], ids=["local", "remote"])
def test_every_format_gives_the_same_samples(output, place):
    found = samples(place(output))
    assert found.keys() == expected().keys()
    for key, drawing in expected().items():
        image, columns = found[key]
        assert image == drawing.png
        assert columns["caption"] == drawing.caption
        assert (columns["width"], columns["url"]) == (48, f"file:{key.removeprefix('s/')}")
        assert "key" not in columns
        assert "png" not in columns


def test_a_remote_entry_can_be_read_after_its_copy_is_gone(output):
    for shard in find_shards([f"s={to_memory(output)}"]).shards:
        for entry in shard.list().entries:  # without `at_hand`, as training does
            assert entry.read_image() == expected()[entry.key].png


def test_a_miscount_is_damage_in_every_format(output):
    (output / "00001_stats.json").write_text('{"successes": 4}')
    damages = [shard.list().damage for shard in find_shards([str(output)]).shards]
    assert damages == [None, "holds 5 samples, its _stats.json says 4", None]


def test_an_unfinished_shard_is_passed_over_in_every_format(output):
    (output / "00001_stats.json").unlink()
    found = find_shards([str(output)])
    assert [shard.expected for shard in found.shards] == [5, 2]
    assert len(found.skipped) == 1


def test_a_signature_changes_with_the_shard(output):
    first, second, _ = find_shards([str(output)]).shards
    before = first.signature()
    assert find_shards([str(output)]).shards[0].signature() == before != second.signature()
    path = first.path if first.path.is_file() else next(iter(sorted(first.path.iterdir())))
    path.write_bytes(path.read_bytes() + b"more")
    assert first.signature() != before


def test_a_torn_parquet_is_damage_and_its_neighbours_are_read(tmp_path):
    output = write_parquets(tmp_path / "out", COUNT, PER_SHARD)
    path = output / "00000.parquet"
    path.write_bytes(path.read_bytes()[:-100])
    damages = [shard.list().damage for shard in find_shards([str(output)]).shards]
    assert "no readable parquet" in damages[0]
    assert damages[1:] == [None, None]


def test_a_remote_shard_that_is_gone_is_damage(tmp_path):
    shard = TarShard("s", uri.at(f"memory://{tmp_path.name}/none.tar"))
    assert "cannot be read" in shard.list().damage


def test_lines_of_a_remote_text_file_are_read(tmp_path):
    path = uri.at(f"memory://{tmp_path.name}/captions.txt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("one\n\n  drei ü \nfour".encode())
    (shard,) = find_shards([str(path)]).shards
    entries = shard.list().entries
    assert [entry.key for entry in entries] == [f"captions/00000000{n}" for n in range(4)]
    assert [e.read_columns()["caption"] for e in entries] == ["one", None, "drei ü", "four"]


def test_images_that_a_pattern_chose_keep_their_captions(tmp_path):
    for name in ("a.png", "b.png", "c.jpg"):
        (tmp_path / name).write_bytes(drawings(1)[0].png)
    (tmp_path / "a.txt").write_text("the first")
    (shard,) = find_shards([f"s={tmp_path}/*.png"]).shards
    assert [(e.key, e.read_columns()["caption"]) for e in shard.list().entries] == [
        ("s/a.png", "the first"),
        ("s/b.png", None),
    ]


def test_rows_without_a_key_are_numbered(tmp_path):
    output = write_parquets(tmp_path / "out", 3, 3)
    path = output / "00000.parquet"
    table = pq.read_table(path).drop_columns(["key", "status"])
    pq.write_table(table, path)
    (output / "00000_stats.json").write_text(json.dumps({"successes": 4}))
    (shard,) = find_shards([f"s={output}"]).shards
    assert [entry.key for entry in shard.list().entries] == [f"s/00000000{n}" for n in range(4)]
