"""Genuine img2dataset output, made by the real tool, is read in all three of its formats."""

import io
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from clipray import images
from clipray.dataset import find_shards
from tests.peers.environment import command, run

pytestmark = pytest.mark.soak

ROWS, PER_SHARD = 50, 20
CAPTIONS = {3: "", 4: None, 5: "Ein Käfer 🐞 auf 葉", 6: "  spaces and\na line break  "}
MISSING = (10, 25, *range(40, 50))  # from 40 on: a shard of which nothing is left
NO_IMAGE = (30,)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Pictures behind a web server; some are missing, one is none."""
    root = tmp_path_factory.mktemp("site")
    rng = np.random.default_rng(0)
    for row in set(range(ROWS)) - set(MISSING):
        (root / file_name(row)).write_bytes(b"no image" if row in NO_IMAGE else picture(rng, row))
    handler = partial(Quiet, directory=str(root))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def listed(site, tmp_path_factory):
    """What img2dataset is given: one row an image, in a parquet file."""
    path = tmp_path_factory.mktemp("listed") / "input.parquet"
    columns = {
        "url": [f"{site}/{file_name(row)}" for row in range(ROWS)],
        "caption": [caption(row) for row in range(ROWS)],
        "language": [language(row) for row in range(ROWS)],
        "NSFW": ["UNLIKELY"] * ROWS,
    }
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_all_formats_give_the_same_samples(form, listed, tmp_path):
    download(listed, tmp_path / "crawl", form)
    found = find_shards([str(tmp_path / "crawl")])
    listings = [shard.list() for shard in found.shards]
    assert found.skipped == {}
    assert [listing.damage for listing in listings] == [None] * len(listings)
    entries = {entry.key: entry for listing in listings for entry in listing.entries}
    assert sum(len(listing.entries) for listing in listings) == len(entries)
    wanted = {key(row): row for row in set(range(ROWS)) - {*MISSING, *NO_IMAGE}}
    assert entries.keys() == wanted.keys()
    for name, row in wanted.items():
        columns = entries[name].read_columns()
        assert columns["caption"] == ((caption(row) or "").strip() or None)
        assert columns["language"] == language(row)
        assert columns["url"].endswith(file_name(row))
        assert columns["original_width"] == 100 + row
        assert min(images.decode(entries[name].read_image()).size) == 64


@pytest.mark.parametrize("form", ["webdataset", "files", "parquet"])
def test_a_shard_without_stats_is_unfinished(form, listed, tmp_path):
    download(listed, tmp_path / "crawl", form)
    (tmp_path / "crawl" / "00001_stats.json").unlink()
    found = find_shards([str(tmp_path / "crawl")])
    keys = {entry.key for shard in found.shards for entry in shard.list().entries}
    assert keys == {key(row) for row in range(PER_SHARD) if row not in MISSING}
    (skipped,) = found.skipped
    assert skipped.startswith(str(tmp_path / "crawl" / "00001"))


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *given):
        pass


def download(listed, folder, form):
    options = {
        "url_list": listed,
        "input_format": "parquet",
        "caption_col": "caption",
        "save_additional_columns": '["language","NSFW"]',
        "output_format": form,
        "output_folder": folder,
        "number_sample_per_shard": PER_SHARD,
        "image_size": 64,
        "thread_count": 8,
    }
    flags = [f"--{name}={value}" for name, value in options.items()]
    run(command("img2dataset", *flags), folder.parent)


def key(row):
    return f"crawl/{row // PER_SHARD:05d}{row % PER_SHARD:02d}"


def caption(row):
    return CAPTIONS.get(row, f"picture number {row}")


def language(row):
    return ("en", "de", None)[row % 3]


def file_name(row):
    return f"{row:03d}.{'png' if row % 5 == 0 else 'jpg'}"


def picture(rng, row):
    coarse = Image.fromarray(rng.integers(0, 255, (8, 8, 3), dtype=np.uint8))
    written = io.BytesIO()
    coarse.resize((100 + row, 120)).save(written, "PNG" if row % 5 == 0 else "JPEG")
    return written.getvalue()
