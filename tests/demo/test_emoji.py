"""The shards must look like img2dataset's own, to us and to any other reader."""

import io
import json
import tarfile

import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipray.demo import emoji
from clipray.errors import InputError, OutputError

LIMIT, PER_SHARD, SIZE = 50, 20, 48


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("emoji") / "shards"
    calls = []
    count = emoji.write_emoji_shards(
        folder, SIZE, PER_SHARD, LIMIT, progress=lambda *call: calls.append(call)
    )
    return folder, count, calls


def members(tar_path):
    with tarfile.open(tar_path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def rows(folder):
    return [
        row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]


def test_files(written):
    folder, _, _ = written
    names = sorted(path.name for path in folder.iterdir())
    kinds = (".parquet", ".tar", "_stats.json")
    assert names == [f"{shard:05d}{kind}" for shard in range(3) for kind in kinds]
    assert [path.name for path in folder.parent.iterdir()] == ["shards"]


def test_progress_counts_every_emoji(written):
    _, count, calls = written
    assert calls == [(done, LIMIT) for done in range(1, LIMIT + 1)]
    assert LIMIT - 5 <= count <= LIMIT


def test_tar_parquet_and_stats_agree(written):
    folder, count, _ = written
    assert len(rows(folder)) == count
    for stats_path in folder.glob("*_stats.json"):
        stem = stats_path.name.removesuffix("_stats.json")
        stats = json.loads(stats_path.read_text())
        table = pq.read_table(folder / f"{stem}.parquet")
        inside = members(folder / f"{stem}.tar")
        keys = table["key"].to_pylist()
        assert list(inside) == [f"{key}.{kind}" for key in keys for kind in ("jpg", "json", "txt")]
        assert stats["count"] == stats["successes"] == table.num_rows == len(keys)
        assert stats["status_dict"] == {"success": len(keys)}
        assert stats["failed_to_download"] == stats["failed_to_resize"] == 0
        assert stats["duration"] >= 0
        for row in table.to_pylist():
            assert json.loads(inside[f"{row['key']}.json"]) == row
            assert inside[f"{row['key']}.txt"].decode() == row["caption"]


def test_keys_are_shard_and_place(written):
    folder, count, _ = written
    expected = [f"{n // PER_SHARD:05d}{n % PER_SHARD:02d}" for n in range(count)]
    assert [row["key"] for row in rows(folder)] == expected


def test_columns(written):
    schema = pq.read_schema(written[0] / "00000.parquet")
    sides = {"width", "height", "original_width", "original_height"}
    texts = {
        "url", "caption", "caption_tags", "emoji", "group", "subgroup", "hexcode", "license",
        "author", "key", "status", "error_message", "exif", "sha256",
    }  # fmt: skip
    assert {field.name: str(field.type) for field in schema} == (
        dict.fromkeys(sides, "int32") | dict.fromkeys(texts, "string")
    )


def test_pictures_are_drawn_on_white(written):
    for name, data in members(written[0] / "00000.tar").items():
        if name.endswith(".jpg"):
            picture = Image.open(io.BytesIO(data))
            assert (picture.format, picture.mode, picture.size) == ("JPEG", "RGB", (SIZE, SIZE))
            assert min(picture.getpixel((0, 0))) > 245
            assert picture.convert("L").getextrema()[0] < 128


def test_captions(written):
    found = rows(written[0])
    captions = [row["caption"] for row in found]
    assert len(set(captions)) == len(captions)
    assert all(caption == " ".join(caption.lower().split()) for caption in captions)
    assert not any("_" in row["caption_tags"] for row in found)
    assert all(row["caption_tags"].split(", ")[0] == row["caption"] for row in found)
    assert {row["license"] for row in found} == {"CC BY-SA 4.0"}
    assert len({row["group"] for row in found}) > 5


def test_what_is_taken():
    taken = emoji._read_emoji()
    columns = {one.columns["emoji"]: one.columns for one in taken}
    assert 1800 < len(taken) == len(columns)
    assert columns["🧀"]["caption"] == "cheese wedge"
    assert columns["🧀"]["group"] == "Food & Drink"
    assert columns["❤️"]["caption"] == "red heart"
    assert columns["🇳🇴"]["caption"] == "flag norway"
    tones = {chr(code) for code in range(0x1F3FB, 0x1F400)}
    assert not any(tones & set(character) for character in columns)


def test_of_equal_pictures_the_best_known_stays():
    taken = [one for one in emoji._read_emoji() if one.columns["subgroup"] == "country-flag"]
    kept = emoji._distinct(emoji._draw_all(taken, 128, None))
    names = {drawing.emoji.columns["caption"] for drawing in kept}
    assert len(taken) - len(names) == 7
    assert "flag norway" in names
    assert "flag svalbard jan mayen" not in names


def test_a_full_folder_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        emoji.write_emoji_shards(tmp_path, limit=2)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_failure_leaves_nothing(tmp_path, monkeypatch):
    def fail(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(emoji, "_write_shard", fail)
    with pytest.raises(KeyboardInterrupt):
        emoji.write_emoji_shards(tmp_path / "shards", limit=2)
    assert list(tmp_path.iterdir()) == []


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(emoji, "resvg_py", None)
    with pytest.raises(InputError, match=r"pip install 'clipray\[demo\]'"):
        emoji.write_emoji_shards(tmp_path / "shards", limit=2)
    with pytest.raises(InputError, match=r"no_such_package.*"):
        emoji._read_json("no_such_package", "data.json")
