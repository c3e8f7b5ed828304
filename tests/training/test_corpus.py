"""What can be trained on is known from lists alone, and is the same when it is listed again."""

import json
import pickle
import shutil
import tarfile

import pytest

from clipray import uri
from clipray.errors import ConfigError, InputError
from clipray.samples import Entry, Location
from clipray.training.corpus import Corpus
from tests.drawing import (
    drawings,
    write_files,
    write_folder,
    write_member,
    write_parquets,
    write_sample,
    write_shards,
)

CAPTION = {"caption": 1.0}


def keys(corpus):
    found = []
    for shard, count in enumerate(corpus.counts):
        for number in range(count):
            with corpus.entry(shard, number) as entry:
                found.append(entry.key)
    return found


def captionless(root):
    """A tar of four: two with a text, an empty `.txt`, and a record's caption without a `.txt`."""
    root.mkdir()
    first, second, third, fourth = drawings(4)
    with tarfile.open(root / "00000.tar", "w") as tar:
        write_sample(tar, "a", first)
        write_sample(tar, "a", first)  # the key again
        write_member(tar, "b.png", second.png)
        write_member(tar, "b.txt", b"")
        write_member(tar, "c.png", third.png)
        write_member(tar, "c.json", json.dumps({"caption": "a c", "title": "t"}).encode())
        write_member(tar, "d.png", fourth.png)
        write_member(tar, "d.txt", b"  ")
        write_member(tar, "e.txt", b"no image")
    return str(root)


@pytest.mark.parametrize("write", [write_folder, write_shards, write_files, write_parquets])
def test_every_format_is_surveyed(tmp_path, write):
    corpus = Corpus.survey([str(write(tmp_path / "data"))], CAPTION)
    assert corpus.samples == sum(corpus.counts) == 40
    assert len(set(keys(corpus))) == 40


def test_only_samples_with_image_and_text_are_counted(tmp_path, caplog):
    data = captionless(tmp_path / "data")
    assert keys(Corpus.survey([data], CAPTION)) == ["data/a", "data/c", "data/d"]
    assert "3 of 6 samples have no image or no text" in caplog.text
    assert keys(Corpus.survey([data], {"title": 1.0})) == ["data/c"]
    assert keys(Corpus.survey([data], CAPTION | {"url": 1.0})) == ["data/a", "data/c", "data/d"]
    with pytest.raises(InputError, match="no image with a text in column none"):
        Corpus.survey([data], {"none": 1.0})


def test_texts_beside_images_are_not_read_for_the_survey(shards, monkeypatch):
    def refuse(*_):
        raise AssertionError("read")

    monkeypatch.setattr(Location, "read", refuse)
    monkeypatch.setattr(Entry, "read_columns", refuse)
    assert Corpus.survey([str(shards)], CAPTION).samples == 40


def test_a_damaged_shard_is_left_out_and_told(tmp_path, caplog):
    data = write_shards(tmp_path / "data")
    whole = Corpus.survey([str(data)], CAPTION)
    with (data / "00001.tar").open("r+b") as file:
        file.truncate(3000)
    found = Corpus.survey([str(data)], CAPTION)
    assert found.counts == (16, 8)
    assert f"{data}/00001.tar: left out" in caplog.text
    assert found.digest != whole.digest
    assert found.digest == Corpus.survey([str(data)], CAPTION).digest


def test_it_pickles_without_entries(shards):
    corpus = Corpus.survey([str(shards)], CAPTION)
    empty = len(pickle.dumps(corpus))
    expected = keys(corpus)
    assert len(pickle.dumps(corpus)) == empty < 2000
    assert keys(pickle.loads(pickle.dumps(corpus)).holding(1)) == expected


def test_weights_are_given_by_input(tmp_path):
    several = [str(write_shards(tmp_path / name, 20, 8)) for name in ("a", "b", "c")]
    inputs = [str(tmp_path / "[ab]"), several[2]]
    corpus = Corpus.survey(inputs, CAPTION)
    assert corpus.weights(()) == (1.0,) * 9
    assert corpus.weights((2.0, 0.5)) == (2.0,) * 6 + (0.5,) * 3
    with pytest.raises(ConfigError, match="3 for 2 inputs; expected one an input"):
        corpus.weights((1.0, 2.0, 3.0))


def test_a_shard_that_changed_or_went_stops_the_run(tmp_path):
    data = write_shards(tmp_path / "data")
    corpus = Corpus.survey([str(data)], CAPTION)
    shutil.copy(data / "00002.tar", data / "00001.tar")
    with pytest.raises(InputError, match=r"00001.tar: holds 8 .* but 16 were listed"):
        keys(corpus)
    (data / "00001.tar").unlink()
    with pytest.raises(InputError, match=r"00001.tar: cannot be read .* put it back"):
        keys(corpus)


def test_of_remote_shards_the_last_few_stay_as_copies(tmp_path, monkeypatch):
    remote = uri.at(f"memory://{tmp_path.name}")
    remote.mkdir(parents=True, exist_ok=True)
    for path in write_shards(tmp_path / "data").iterdir():
        (remote / path.name).write_bytes(path.read_bytes())
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    corpus = Corpus.survey([str(remote)], CAPTION).holding(2)
    assert not list(scratch.iterdir())
    for shard in (0, 1, 2):
        with corpus.entry(shard, 0) as entry:
            assert entry.image.copy.is_file()
            assert entry.read_image()
    assert len(list(scratch.iterdir())) == 2
    del corpus, entry
    assert not list(scratch.iterdir())


def test_a_machine_without_a_shard_says_which(tmp_path):
    folder = write_shards(tmp_path / "pairs", count=32, per_shard=16)
    corpus = Corpus.survey((str(folder),), {"caption": 1.0})
    corpus.require_here()
    (folder / "00001.tar").unlink()
    with pytest.raises(InputError, match=r"00001.tar: not there \(1 of 2 shards\)"):
        corpus.require_here()
