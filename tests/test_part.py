"""One shard, one part: every sample is in it or in `rejected`, with its reason."""

import json
import resource
import tarfile
import threading
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipray import uri
from clipray.dataset import find_shards
from clipray.embeddings import EmbeddingsFolder
from clipray.errors import ClipRayError
from clipray.part import PartPlan, Workshop, embed_shard
from clipray.prepare import PartSettings
from clipray.samples import Location
from clipray.shards import TarShard
from tests.drawing import (
    Drawing,
    drawings,
    write_files,
    write_member,
    write_parquets,
    write_sample,
)

BOTH = PartSettings(("image", "text"), batch_size=4)


@pytest.fixture
def folder(tmp_path):
    return EmbeddingsFolder(tmp_path / "out")


@pytest.fixture
def messy(tmp_path):
    """A tar of five good samples and one of each kind that must not enter."""
    drawn = drawings(8)
    path = tmp_path / "messy.tar"
    with tarfile.open(path, "w") as tar:
        for number in (0, 1):
            write_sample(tar, f"good{number}", drawn[number])
        write_member(tar, "halfway.json", b'{"caption": "its picture does not come"}')
        write_sample(tar, "broken", Drawing("no picture", b"<html>"))
        write_sample(tar, "empty", Drawing("no bytes", b""))
        write_sample(tar, "good2", drawn[2])
        write_sample(tar, "good0", drawn[3])
        write_sample(tar, "silent", Drawing(" ", drawn[4].png))
        for number in (3, 4):
            write_sample(tar, f"good{number}", drawn[number])
        write_member(tar, "good4.json", b"{}")
    return TarShard("m", path)


def columns(folder, part=0):
    return pq.read_table(folder.metadata(part)).to_pydict()


def vectors(folder, modality, part=0):
    return np.load(folder.vectors(part, modality))


def rejected(folder, part=0):
    lines = folder.rejected(part).read_text(encoding="utf-8").splitlines()
    return {line["key"]: line["reason"] for line in map(json.loads, lines)}


def test_rows_and_vectors_stand_in_one_order(folder, messy, encoder):
    report = embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder))
    found = columns(folder)
    assert found["image_path"] == [f"m/good{number}" for number in range(5)]
    assert report.rows == 5
    drawn = drawings(5)
    assert found["caption"] == [drawing.caption for drawing in drawn]
    images = encoder.encode_images([encoder.pixels(drawing.png) for drawing in drawn])
    texts = encoder.encode_texts(found["caption"])
    for modality, expected in (("image", images), ("text", texts)):
        stored = vectors(folder, modality)
        assert stored.dtype == np.float16
        np.testing.assert_allclose(stored, expected, atol=2e-3)


def test_in_is_out_and_rejected(folder, messy, encoder):
    report = embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder))
    assert rejected(folder) == {
        "m/halfway": "no image",
        "m/broken": "not a readable image",
        "m/empty": "empty",
        "m/good0": "duplicate key",
        "m/silent": "no caption",
        "m/good4": "duplicate key",
    }
    assert report.rejected == {
        "no image": 1,
        "not a readable image": 1,
        "empty": 1,
        "duplicate key": 2,
        "no caption": 1,
    }
    assert report.rows + sum(report.rejected.values()) == len(messy.list().entries)


def test_the_marker_says_what_is_there(folder, messy, encoder):
    embed_shard(PartPlan(7, messy), Workshop(BOTH, folder, encoder))
    (part,) = folder.parts().values()
    assert (part.shard, part.rows, part.model) == ("m/messy.tar", 5, encoder.identity.fingerprint)
    assert part.signature == messy.signature()
    for name, record in part.files.items():
        record.verify(folder.root / name)
    there = {str(p.relative_to(folder.root)) for p in folder.root.rglob("*") if p.is_file()}
    assert (
        there
        == {*part.files, "done/00007.json"}
        == {
            "img_emb/img_emb_00007.npy",
            "text_emb/text_emb_00007.npy",
            "metadata/metadata_00007.parquet",
            "rejected/rejected_00007.jsonl",
            "done/00007.json",
        }
    )  # clip-retrieval's layout


def test_the_place_of_every_image_is_kept(folder, messy, encoder):
    embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder))
    found = columns(folder)
    places = zip(
        found["source_path"], found["source_offset"], found["source_size"], drawings(5), strict=True
    )
    for path, offset, size, drawing in places:
        assert Path(path).read_bytes()[offset : offset + size] == drawing.png


def test_one_tower_asks_for_what_it_needs(folder, messy, encoder):
    images = embed_shard(PartPlan(0, messy), Workshop(PartSettings(("image",)), folder, encoder))
    texts = embed_shard(PartPlan(1, messy), Workshop(PartSettings(("text",)), folder, encoder))
    assert (images.rows, texts.rows) == (6, 8)
    assert columns(folder, 0)["caption"][5 - 2] is None
    assert "m/broken" in columns(folder, 1)["image_path"]
    assert not folder.vectors(0, "text").exists()
    assert not folder.vectors(1, "image").exists()


def test_a_rerun_writes_the_same(folder, messy, encoder):
    plan = PartPlan(0, messy)
    first = embed_shard(plan, Workshop(BOTH, folder, encoder))
    before = folder.parts()
    assert embed_shard(plan, Workshop(BOTH, folder, encoder)).rejected == first.rejected
    assert folder.parts() == before


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.integers(1, 12), st.integers(1, 3))
def test_batches_and_threads_change_nothing(folder, messy, encoder, batch, threads):
    wanted = PartPlan(0, messy)
    if not folder.done(0).exists():
        embed_shard(wanted, Workshop(BOTH, folder, encoder))
    settings_ = PartSettings(("image", "text"), batch_size=batch, decode_threads=threads)
    embed_shard(PartPlan(1, messy), Workshop(settings_, folder, encoder))
    assert columns(folder, 1) == columns(folder, 0)
    assert rejected(folder, 1) == rejected(folder, 0)
    for modality in ("image", "text"):
        np.testing.assert_allclose(
            vectors(folder, modality, 1), vectors(folder, modality, 0), atol=2e-3
        )


@pytest.mark.parametrize("damage", ["cut", "stats"])
def test_a_damaged_shard_writes_nothing(folder, messy, encoder, damage):
    if damage == "cut":
        messy.path.write_bytes(messy.path.read_bytes()[:-12_000])
    else:
        messy.path.with_name("messy_stats.json").write_text('{"successes": 99}')
    (shard,) = find_shards([str(messy.path)]).shards
    report = embed_shard(PartPlan(0, shard), Workshop(BOTH, folder, encoder))
    assert report.damage
    assert report.rows == 0
    assert not folder.root.exists()


def test_a_shard_of_which_nothing_is_left_is_a_part_without_rows(folder, encoder, tmp_path):
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        write_sample(tar, "a", Drawing("x", b"no"))
    report = embed_shard(
        PartPlan(0, TarShard("s", tmp_path / "x.tar")), Workshop(BOTH, folder, encoder)
    )
    assert (report.rows, report.rejected) == (0, {"not a readable image": 1})
    assert (folder.part(0).rows, folder.part(0).samples) == (0, 1)
    written = [str(path.relative_to(folder.root)) for path in folder.root.rglob("*.*")]
    assert sorted(written) == ["done/00000.json", "rejected/rejected_00000.jsonl"]


def test_whatever_a_record_holds_becomes_columns(folder, encoder, tmp_path):
    records = [
        {"width": 1, "score": float("nan"), "tags": ["a"], "image_path": "mine", "big": 10**30},
        {"width": "wide", "flag": True, "half": "\ud83d", "source_size": "theirs", "big": 1},
        {"width": None, "\ud83d": 1, "caption": {"a": 1}, "exif": None, "id": 5, "score": 1e300},
    ]
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for number, (record, drawing) in enumerate(zip(records, drawings(3), strict=True)):
            write_member(tar, f"{number}.json", json.dumps(record).encode())
            write_member(tar, f"{number}.png", drawing.png)
    plan = PartPlan(0, TarShard("s", tmp_path / "x.tar"))
    assert embed_shard(plan, Workshop(PartSettings(("image",)), folder, encoder)).rows == 3
    found = columns(folder)
    assert found["image_path"] == ["s/0", "s/1", "s/2"]
    assert found["width"] == ["1", "wide", None]
    assert found["big"] == [str(10**30), "1", None]
    assert found["tags"] == ['["a"]', None, None]
    assert found["flag"] == [None, True, None]
    assert found["half"] == [None, "?", None]
    assert found["caption"] == [None, None, '{"a": 1}']
    assert all(isinstance(size, int) for size in found["source_size"])


def test_a_filter_selects_and_what_it_leaves_is_counted(folder, messy, encoder):
    settings = PartSettings(("image",), filter={"width": {"$exists": True}, "url": {"$ne": "no"}})
    report = embed_shard(PartPlan(0, messy), Workshop(settings, folder, encoder))
    done = folder.part(0)
    assert (done.rows, done.filtered, report.samples) == (6, 1, 11)  # halfway.json has no width
    assert done.rows + sum(done.rejected.values()) + done.filtered == done.samples
    settings = PartSettings(("image",), filter={"caption": {"$contains": "red"}})
    embed_shard(PartPlan(1, messy), Workshop(settings, folder, encoder))
    assert all("red" in caption for caption in columns(folder, 1)["caption"])
    assert folder.part(1).rows > 0


def test_a_cut_at_every_block_is_told_or_loses_nothing(folder, encoder, tmp_path):
    path, drawn = tmp_path / "00000.tar", drawings(4)
    with tarfile.open(path, "w") as tar:
        for number, drawing in enumerate(drawn):
            write_sample(tar, str(number), drawing)
    whole = path.read_bytes()
    shop, outcomes = Workshop(BOTH, folder, encoder), set()
    for part, end in enumerate(range(0, len(whole) + 1, 512)):
        path.write_bytes(whole[:end])
        report = embed_shard(PartPlan(part, TarShard("s", path)), shop)
        assert bool(report.damage) != folder.done(part).exists()
        assert report.damage or report.rows == len(drawn), f"cut at {end}"
        outcomes.add(bool(report.damage))
    assert outcomes == {True, False}


def test_a_part_that_is_there_is_kept(folder, messy, encoder):
    plan, shop = PartPlan(0, messy), Workshop(BOTH, folder, encoder)
    first = embed_shard(plan, shop)
    written = folder.vectors(0, "image").stat().st_mtime_ns
    again = embed_shard(plan, shop)
    assert (again.kept, again.rows, again.rejected) == (True, first.rows, first.rejected)
    assert not first.kept
    with tarfile.open(messy.path, "a") as tar:
        write_sample(tar, "later", drawings(1)[0])
    assert "when it was embedded, is now" in embed_shard(plan, shop).damage
    assert folder.vectors(0, "image").stat().st_mtime_ns == written


def test_every_sample_ticks_and_the_time_is_told(folder, messy, encoder):
    ticks = []
    shop = Workshop(BOTH, folder, encoder, "me", tick=ticks.append)
    report = embed_shard(PartPlan(0, messy), shop)
    assert sum(ticks) == report.samples == 11
    assert report.actor == "me"
    assert report.ended - report.began >= report.seconds["encode"] > 0
    assert report.seconds.keys() == {"list", "decode", "wait", "encode", "write"}


def test_a_batch_is_gathered_while_another_may_be_encoded(folder, messy, encoder, monkeypatch):
    turn, held, gather = threading.Lock(), [], encoder.gather

    def watched(pixels):
        held.append(turn.locked())
        return gather(pixels)

    monkeypatch.setattr(encoder, "gather", watched)
    embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder, turn=turn))
    assert held == [False, False]


def test_a_remote_shard_keeps_its_address(folder, messy, encoder, tmp_path):
    remote = uri.at(f"memory://{tmp_path.name}/messy.tar")
    remote.parent.mkdir(parents=True, exist_ok=True)
    remote.write_bytes(messy.path.read_bytes())
    shop = Workshop(BOTH, folder, encoder)
    embed_shard(PartPlan(0, messy), shop)
    report = embed_shard(PartPlan(1, TarShard("m", remote)), shop)
    assert report.path == str(remote)
    here, there = columns(folder, 0), columns(folder, 1)
    assert set(there.pop("source_path")) == {str(remote)}
    del here["source_path"]
    assert here == there
    np.testing.assert_array_equal(vectors(folder, "image", 0), vectors(folder, "image", 1))
    place = Location(remote, there["source_offset"][0], there["source_size"][0])
    assert place.read(10**6) == drawings(1)[0].png


@pytest.mark.parametrize("writer", [write_files, write_parquets])
def test_the_place_of_an_image_is_kept_in_every_format(folder, encoder, tmp_path, writer):
    writer(tmp_path / "out", 5, 5)
    (shard,) = find_shards([str(tmp_path / "out")]).shards
    embed_shard(PartPlan(0, shard), Workshop(BOTH, folder, encoder))
    found = columns(folder)
    by_caption = {drawing.caption: drawing.png for drawing in drawings(5)}
    places = zip(
        found["source_path"],
        found["source_offset"],
        found["source_size"],
        found["caption"],
        strict=True,
    )
    for path, offset, size, caption in places:
        assert Location(Path(path), offset, size).read(10**6) == by_caption[caption]
    assert len(found["caption"]) == 5


def test_a_shard_that_vanishes_is_told(folder, messy, encoder):
    messy.path.unlink()
    report = embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder))
    assert report.damage == "cannot be read (No such file or directory)"


@pytest.mark.parametrize("damaged", [False, True])
def test_what_a_killed_attempt_left_is_no_part_of_the_next(folder, messy, encoder, damaged):
    shop = Workshop(BOTH, folder, encoder)
    embed_shard(PartPlan(0, messy), shop)
    folder.done(0).unlink()  # the attempt was killed before its end
    with tarfile.open(messy.path, "w") as tar:
        write_sample(tar, "good", drawings(1)[0])
    if damaged:
        messy.path.write_bytes(messy.path.read_bytes()[:700])
    assert bool(embed_shard(PartPlan(0, messy), shop).damage) is damaged
    assert not folder.rejected(0).exists()
    assert folder.metadata(0).exists() is folder.vectors(0, "image").exists() is not damaged


def test_an_output_that_cannot_be_written_is_no_damage_of_the_input(folder, messy, encoder):
    folder.root.mkdir()
    (folder.root / "img_emb").write_bytes(b"where a folder should be")
    with pytest.raises(ClipRayError, match=r"img_emb_00000\.npy: cannot be written"):
        embed_shard(PartPlan(0, messy), Workshop(BOTH, folder, encoder))
    assert not folder.parts()


def test_a_full_disk_is_told_and_publishes_nothing(folder, messy, encoder):
    shop, limits = Workshop(BOTH, folder, encoder), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, limits[1]))  # a write beyond it fails
    try:
        with pytest.raises(ClipRayError, match=r"cannot be written \(File too large\)"):
            embed_shard(PartPlan(0, messy), shop)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not folder.parts()
    assert embed_shard(PartPlan(0, messy), shop).rows == 5
