"""Inputs as others leave them: whole, unfinished, damaged, unordered."""

import json
import os
import tarfile

import pytest

from clipray.dataset import IMAGES_PER_SHARD, LINES_PER_SHARD, find_shards
from clipray.errors import InputError
from clipray.shards import TarShard
from tests.drawing import drawings, write_folder, write_member, write_shards


@pytest.fixture
def shards(tmp_path):
    """Our own, as the tests change them."""
    return write_shards(tmp_path / "shards", count=10, per_shard=5)


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            write_member(tar, name, data)
    return path


def entries(path):
    (shard,) = find_shards([str(path)]).shards
    return list(shard.list().entries)


def test_shards_list_their_samples_in_order(shards):
    found = find_shards([str(shards)])
    assert [shard.name for shard in found.shards] == ["shards/00000.tar", "shards/00001.tar"]
    assert found.skipped == {}
    listing = found.shards[1].list()
    assert listing.damage is None
    assert [entry.key for entry in listing.entries] == [f"shards/00001{n:04d}" for n in range(5)]
    drawn = drawings(10)[5]
    assert listing.entries[0].read_image() == drawn.png
    assert listing.entries[0].read_columns() == {
        "caption": drawn.caption,
        "width": 48,
        "url": "file:000010000",
    }


def test_a_folder_lists_images_with_the_captions_beside_them(tmp_path):
    photos = write_folder(tmp_path / "photos", count=4)
    (photos / "even" / "note.md").write_text("no picture")
    (photos / "even" / "0002.txt").unlink()
    (photos / "UPPER.PNG").write_bytes(drawings(1)[0].png)
    found = entries(photos)
    assert [entry.key for entry in found] == [
        f"photos/{name}"
        for name in ("UPPER.PNG", "even/0000.png", "even/0002.png", "odd/0001.png", "odd/0003.png")
    ]
    assert [entry.read_columns()["caption"] for entry in found] == [
        None,
        drawings(4)[0].caption,
        None,
        drawings(4)[1].caption,
        drawings(4)[3].caption,
    ]


def test_pictures_of_formats_that_are_not_read_are_told(tmp_path, caplog):
    folder = write_folder(tmp_path / "photos", count=2)
    for name in ("one.HEIC", "two.heic", "three.nef", "film.mp4"):
        (folder / name).write_bytes(b"")
    entries(folder)
    assert f"{folder}: not read: 2 .heic, 1 .nef; save them as" in caplog.text


def test_a_large_folder_is_cut_into_shards(tmp_path):
    for number in range(IMAGES_PER_SHARD + 1):
        (tmp_path / f"{number:05d}.jpg").touch()
    first, second = find_shards([f"big={tmp_path}"]).shards
    assert (len(first.list().entries), len(second.list().entries)) == (IMAGES_PER_SHARD, 1)
    assert second.name == f"big/{IMAGES_PER_SHARD:05d}.jpg"


def test_an_unfinished_shard_is_passed_over_and_told(shards):
    (shards / "00001_stats.json").unlink()
    found = find_shards([str(shards)])
    assert [shard.path.name for shard in found.shards] == ["00000.tar"]
    (path, reason) = next(iter(found.skipped.items()))
    assert path.endswith("00001.tar")
    assert "no _stats.json" in reason


@pytest.mark.parametrize("stats", [b"", b"{", b"[]", b"{}", b'{"successes": null}', b"\xff"])
def test_a_torn_stats_file_is_an_unfinished_shard(shards, stats):
    (shards / "00001_stats.json").write_bytes(stats)
    assert len(find_shards([str(shards)]).skipped) == 1


def test_tars_without_any_stats_are_not_from_img2dataset_and_are_read(shards):
    for path in shards.glob("*_stats.json"):
        path.unlink()
    found = find_shards([str(shards)])
    assert len(found.shards) == 2
    assert found.shards[0].list().damage is None


@pytest.mark.parametrize("successes", [4, 6])
def test_a_miscount_is_damage(shards, successes):
    (shards / "00000_stats.json").write_text(json.dumps({"successes": successes}))
    damage = find_shards([str(shards)]).shards[0].list().damage
    assert damage == f"holds 5 samples, its _stats.json says {successes}"


def test_a_cut_tar_is_damage(shards):
    path = shards / "00000.tar"
    path.write_bytes(path.read_bytes()[:4096])
    damage = find_shards([str(shards)]).shards[0].list().damage
    assert damage
    assert "cut" in damage


def test_a_gzipped_tar_is_damage(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w:gz") as tar:
        write_member(tar, "a.jpg", b"x")
    assert find_shards([str(tmp_path / "a.tar")]).shards[0].list().damage


def test_members_come_in_any_order(tmp_path):
    members = [
        ("b.txt", b"B"),
        ("a.json", b"{}"),
        ("b.jpg", b"1"),
        ("a.jpg", b"2"),
        ("a.txt", b"A"),
    ]
    found = entries(write_tar(tmp_path / "x.tar", members))
    assert {(e.key, e.read_image(), e.read_columns()["caption"]) for e in found} == {
        ("x/a", b"2", "A"),
        ("x/b", b"1", "B"),
    }
    assert not any(entry.duplicate for entry in found)


def test_a_key_that_comes_again_is_a_duplicate_of_its_own(tmp_path):
    members = [
        ("a.jpg", b"1"),
        ("a.txt", b"one"),
        ("b.jpg", b"2"),
        ("a.jpg", b"3"),
        ("a.txt", b"x"),
    ]
    found = entries(write_tar(tmp_path / "x.tar", members))
    assert [(e.key, e.read_image(), e.duplicate) for e in found] == [
        ("x/a", b"1", False),
        ("x/b", b"2", False),
        ("x/a", b"3", True),
    ]
    assert [entry.read_columns()["caption"] for entry in found] == ["one", None, "x"]


def test_names_that_climb_are_only_keys(tmp_path):
    path = write_tar(tmp_path / "x.tar", [("../../up.jpg", b"1"), ("/abs.jpg", b"2")])
    assert [(e.key, e.read_image()) for e in entries(path)] == [
        ("x/../../up", b"1"),
        ("x//abs", b"2"),
    ]


def test_other_members_are_not_samples(tmp_path):
    members = [("README.md", b"x"), ("a.jpg", b"1"), ("a.npy", b"2"), ("a.JPG.md5", b"3")]
    assert [entry.key for entry in entries(write_tar(tmp_path / "x.tar", members))] == ["x/a"]


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ([("a.txt", b"  two words \n")], "two words"),
        ([("a.txt", b"")], None),
        ([("a.txt", b" \n")], None),
        ([("a.json", b'{"caption": null}')], None),
        ([("a.json", b'{"caption": "from json"}')], "from json"),
        ([("a.json", b'{"caption": 7}')], "7"),
        ([("a.json", b'{"caption": "json"}'), ("a.txt", b"text")], "text"),
        ([("a.json", b'{"caption": null}'), ("a.txt", b"")], None),
        ([("a.txt", b"caf\xe9")], "caf\N{REPLACEMENT CHARACTER}"),
        ([("a.txt", "🦜 \0 é".encode())], "🦜 \0 é"),
        ([("a.json", b'{"caption": "\\ud83d cut"}')], "? cut"),
        ([], None),
    ],
)
def test_the_caption(tmp_path, members, caption):
    (found,) = entries(write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), *members]))
    assert found.read_columns()["caption"] == caption


@pytest.mark.parametrize("record", [b"{", b"[1]", b"7", b"\xff\xff", b"[" * 100_000, b"1" * 9999])
def test_a_record_that_is_no_object_is_no_record(tmp_path, record):
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.json", record), ("a.txt", b"t")])
    assert entries(path)[0].read_columns() == {"caption": "t"}


def test_nested_values_of_a_record_become_json(tmp_path):
    record = {"key": "9", "exif": '{"a": 1}', "faces": [[1, 2], "é"], "width": 3, "big": None}
    path = write_tar(tmp_path / "x.tar", [("a.jpg", b"1"), ("a.json", json.dumps(record).encode())])
    assert entries(path)[0].read_columns() == {
        "exif": '{"a": 1}',
        "faces": '[[1, 2], "é"]',
        "width": 3,
        "big": None,
        "caption": None,
    }


def test_sources_are_named_and_prefix_their_keys(tmp_path, shards):
    photos = write_folder(tmp_path / "photos", count=2)
    found = find_shards([f"mine={shards}", str(photos), f"one.tar={shards / '00000.tar'}"])
    assert [shard.name for shard in found.shards] == [
        "mine/00000.tar",
        "mine/00001.tar",
        "photos/even/0000.png",
        "one.tar/00000.tar",
    ]
    assert found.shards[0].list().entries[0].key == "mine/000000000"


def test_a_folder_with_an_equals_sign_is_a_folder(tmp_path, monkeypatch):
    write_folder(tmp_path / "a=b", count=1)
    monkeypatch.chdir(tmp_path)
    assert entries("a=b")[0].key == "a=b/even/0000.png"


def test_two_inputs_of_one_name_clash(tmp_path):
    for parent in ("x", "y"):
        write_folder(tmp_path / parent / "photos", count=1)
    inputs = [str(tmp_path / "x" / "photos"), str(tmp_path / "y" / "photos")]
    with pytest.raises(InputError, match="two inputs are called 'photos'"):
        find_shards(inputs)
    assert len(find_shards([inputs[0], f"others={inputs[1]}"]).shards) == 2


def test_missing_and_wrong_inputs_are_told(tmp_path):
    (tmp_path / "a.zip").touch()
    (tmp_path / "a.txt").touch()
    for given, told in [
        (tmp_path / "none", "no such folder"),
        (tmp_path / "none.tar", "no such folder"),
        (tmp_path, r"no image and no \.tar"),
        (tmp_path / "a.txt", "empty"),
        (tmp_path / "a.zip", "expected a folder of images"),
    ]:
        with pytest.raises(InputError, match=told):
            find_shards([str(given)])


def test_a_signature_changes_with_the_shard(shards, tmp_path):
    (tar, _) = find_shards([str(shards)]).shards
    before = tar.signature()
    assert find_shards([str(shards)]).shards[0].signature() == before
    tar.path.write_bytes(tar.path.read_bytes() + b"\0" * 512)
    assert tar.signature() != before
    photos = write_folder(tmp_path / "photos", count=2)
    (folder,) = find_shards([str(photos)]).shards
    before = folder.signature()
    (photos / "odd" / "0001.png").write_bytes(b"other")
    assert folder.signature() != before


def test_names_that_are_no_unicode_give_keys_that_are(tmp_path):
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (tmp_path / name).write_bytes(b"x")
    except OSError:
        pytest.skip("the file system takes Unicode names only")
    (shard,) = find_shards([f"s={tmp_path}"]).shards
    (entry,) = shard.list().entries
    assert entry.read_image() == b"x"
    assert entry.key == shard.name == r"s/caf\udce9.jpg"
    assert shard.signature()


def test_long_texts_and_images_are_cut(tmp_path):
    big = b"x" * (21 << 20)
    (found,) = entries(write_tar(tmp_path / "x.tar", [("a.jpg", big), ("a.txt", big)]))
    assert len(found.read_image()) == (20 << 20) + 1
    assert len(found.read_columns()["caption"]) == 4 << 20


def test_a_sample_without_an_image_reads_as_no_bytes(tmp_path):
    (found,) = entries(write_tar(tmp_path / "x.tar", [("a.txt", b"only text")]))
    assert found.image is None
    assert found.read_image() == b""
    assert isinstance(find_shards([str(tmp_path / "x.tar")]).shards[0], TarShard)


def test_a_text_file_is_one_sample_a_line(tmp_path):
    lines = ["first", "", "dritte Zeile, ä", "last, without an end"]
    (tmp_path / "words.txt").write_bytes("\r\n".join(lines).encode())
    (shard,) = find_shards([str(tmp_path / "words.txt")]).shards
    entries = shard.list().entries
    assert [entry.key for entry in entries] == [f"words/{n:09d}" for n in range(4)]
    assert [entry.read_columns()["caption"] or "" for entry in entries] == lines


def test_a_long_text_file_is_cut_into_shards_that_miss_no_line(tmp_path):
    count = 2 * LINES_PER_SHARD + 5
    (tmp_path / "w.txt").write_text("".join(f"text {n}\n" for n in range(count)))
    shards = find_shards([f"many={tmp_path / 'w.txt'}"]).shards
    entries = [entry for shard in shards for entry in shard.list().entries]
    assert [len(shard.list().entries) for shard in shards] == [LINES_PER_SHARD] * 2 + [5]
    assert entries[-1].key == f"many/{count - 1:09d}"
    assert entries[LINES_PER_SHARD].read_columns()["caption"] == f"text {LINES_PER_SHARD}"
    assert len({shard.signature() for shard in shards}) == 3


def test_two_shards_of_one_name_are_refused(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "a/b/x.png").touch()
    with pytest.raises(InputError, match=r"both are called 's/b/x\.png'"):
        find_shards([f"s={tmp_path}/a", f"s={tmp_path}/a/*/*"])
