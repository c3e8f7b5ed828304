"""Samples come out in their order, selected, decoded, or with the reason why not."""

import threading

import numpy as np
import pytest

from clipray.errors import ImageError
from clipray.prepare import PartSettings, prepare
from clipray.samples import Entry, Location

PIXELS = np.zeros((3, 2, 2), np.uint8)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(b"picture")
    return Location(path, 0, 7)


def entries(picture, count):
    return [
        Entry(f"s/{number}", picture, columns={"caption": "c", "width": number})
        for number in range(count)
    ]


def reasons(samples):
    return [sample.rejection for sample in samples]


def test_the_order_is_kept_and_the_filter_comes_before_the_pixels(picture):
    decoded = []
    settings = PartSettings(("image",), filter={"width": {"$gte": 30}})

    def decode(data):
        decoded.append(data)
        return PIXELS

    found = list(prepare(entries(picture, 50), settings, decode))
    assert [sample.entry.key for sample in found] == [f"s/{number}" for number in range(50)]
    assert [sample.selected for sample in found] == [False] * 30 + [True] * 20
    assert len(decoded) == 20
    assert all(sample.pixels is PIXELS for sample in found[30:])


def test_threads_run_ahead_but_not_further_than_two_batches(picture):
    settings = PartSettings(("image",), batch_size=5, decode_threads=3)
    started = threading.Semaphore(0)

    def decode(data):
        started.release()
        return PIXELS

    samples = prepare(entries(picture, 100), settings, decode)
    next(samples)
    for _ in range(10):
        assert started.acquire(timeout=5)
    assert not started.acquire(timeout=0.2)  # the eleventh waits until another is taken
    next(samples)
    assert started.acquire(timeout=5)
    samples.close()


def test_what_cannot_be_encoded_says_why(picture, tmp_path):
    def decode(data):
        if not data:
            raise ImageError("empty: 0 bytes")
        return PIXELS

    gone = Location(tmp_path / "gone", 0, 5)
    given = [
        Entry("s/good", picture, columns={"caption": "c"}),
        Entry("s/again", picture, duplicate=True),
        Entry("s/none", columns={"caption": "c"}),
        Entry("s/silent", picture, columns={"caption": "  "}),
        Entry("s/gone", gone, columns={"caption": "c"}),
        Entry("s/empty", Location(picture.path, 7, 0), columns={"caption": "c"}),
    ]
    found = list(prepare(given, PartSettings(("image", "text")), decode))
    assert reasons(found) == [
        None,
        "duplicate key: it comes again in its shard",
        "no image",
        "no caption",
        "cannot be read: No such file or directory",
        "empty: 0 bytes",
    ]


def test_a_bug_is_not_a_rejection(picture):
    def decode(data):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(prepare(entries(picture, 1), PartSettings(("image",)), decode))
