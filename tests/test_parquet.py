"""Images in parquet rows: found by their column, read group by group, damage told."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipray import parquet, uri

IMAGES = [b"one", b"two", None, b"four", b"five", b"six", b"seven"]


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    table = pa.table({"key": [str(n) for n in range(7)], "JPG": IMAGES, "width": range(7)})
    local = tmp_path / "00000.parquet"
    pq.write_table(table, local, row_group_size=3)
    if request.param == "local":
        return local
    remote = uri.at(f"memory://{tmp_path.name}/00000.parquet")
    remote.parent.mkdir(parents=True, exist_ok=True)
    remote.write_bytes(local.read_bytes())
    return remote


def test_rows_are_read_without_their_images(path):
    assert parquet.image_column(path) == "JPG"
    rows = parquet.read_rows(path)
    assert rows[4] == {"key": "4", "width": 4}
    assert len(rows) == 7


@pytest.mark.parametrize("row", range(7))
def test_an_image_is_read_by_its_row(path, row):
    assert parquet.read_image(path, row) == (IMAGES[row] or b"")


@pytest.mark.parametrize("row", [-1, 7])
def test_rows_that_are_not_there_are_told(path, row):
    with pytest.raises(OSError, match=f"row {row} was asked for"):
        parquet.read_image(path, row)


def test_groups_are_read_once_in_their_order(tmp_path, monkeypatch):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"png": [b"x"] * 100}), path, row_group_size=10)
    reads = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, names: reads.append(group) or whole(file, group, names),
    )
    for row in range(100):
        parquet.read_image(path, row)
    assert reads == list(range(10))


def test_a_replaced_file_is_read_again(tmp_path):
    path = tmp_path / "x.parquet"
    for content in (b"old", b"new"):
        pq.write_table(pa.table({"png": [content]}), path)
        assert parquet.read_image(path, 0) == content


def test_metadata_and_text_columns_are_no_images(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"jpg": ["text"], "data": [b"x"]}), path)
    assert parquet.image_column(path) is None
    with pytest.raises(OSError, match="no column of images"):
        parquet.read_image(path, 0)


def test_damage_is_an_os_error(tmp_path):
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"png": [b"x" * 5000] * 10, "key": ["k"] * 10}), path)
    whole = path.read_bytes()
    for data in (b"", b"PAR1", whole[: len(whole) // 2], b"no parquet at all"):
        path.write_bytes(data)
        with pytest.raises(OSError, match="no readable parquet"):
            parquet.read_rows(path)
    path.write_bytes(b"PAR1" + b"\xff" * 200 + whole[204:])
    with pytest.raises(OSError, match=r"header failed|damaged parquet"):
        parquet.read_image(path, 0)
