"""Processes make samples ready as threads do, and are gone when they should be."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest

from clipray.decode_pool import DecodePool
from clipray.errors import ImageError, UnavailableError
from clipray.prepare import PartSettings, prepare
from clipray.samples import Entry, Location
from clipray.shards import TarShard
from tests.drawing import write_shards

SETTINGS = PartSettings(("image", "text"), batch_size=20, filter={"width": {"$gte": 3}})
PROGRAM = """
import time
from multiprocessing import active_children
from tests.test_decode_pool import SETTINGS, decode, replace, DecodePool, entries
from pathlib import Path
if __name__ == "__main__":
    pool = DecodePool(replace(SETTINGS, decode_processes=2))
    list(pool.prepare(entries(Path({folder!r}), 40), decode))
    print(*(process.pid for process in active_children()), flush=True)
    time.sleep(60)
"""


def decode(data):
    if data == b"bad":
        raise ImageError("not a readable image: bad")
    if data == b"end":
        os.kill(os.getpid(), signal.SIGKILL)
    return np.full((3, 2, 2), len(data), np.uint8)


def len_of(data):
    return np.full((3, 2, 2), len(data) % 256, np.uint8)


def entries(folder: Path, count):
    """Of changing sizes; every seventh cannot be read, every eleventh has no caption."""
    found = []
    for number in range(count):
        path = folder / str(number)
        path.write_bytes(b"bad" if number % 7 == 6 else b"x" * (4 + number))
        caption = "" if number % 11 == 10 else "c"
        image = Location(path, 0, path.stat().st_size)
        found.append(Entry(f"s/{number}", image, columns={"caption": caption, "width": number}))
    return found


def told(samples):
    """All but the time that they took."""
    pixels = [None if sample.pixels is None else sample.pixels.tolist() for sample in samples]
    return pixels, [replace(sample, pixels=None, seconds=0) for sample in samples]


def test_they_give_what_threads_give_in_the_same_order(tmp_path):
    given = entries(tmp_path, 50)
    with DecodePool(replace(SETTINGS, decode_processes=2)) as pool:
        shards = [pool.prepare(given[:30], decode), pool.prepare(given[30:], decode)]
        found = [[sample for _, sample in zip(range(99), shard, strict=False)] for shard in shards]
    expected = told(list(prepare(given, SETTINGS, decode)))
    assert told([*found[0], *found[1]]) == expected
    assert {sample.rejection for sample in found[0]} == {
        None, "no caption", "not a readable image: bad",
    }  # fmt: skip
    assert not [process for process in active_children() if "ForkServer" in process.name]


def test_a_shard_is_listed_there_and_its_samples_do_not_travel_back(tmp_path):
    write_shards(tmp_path / "in", 5, 5)
    path = tmp_path / "in" / "00000.tar"
    shard = TarShard("s", path, copy=path)
    with DecodePool(PartSettings(("image",), decode_processes=1)) as pool:
        listing = pool.list(shard)
        made = list(pool.prepare(listing.entries, len_of))
        damage = pool.list(TarShard("s", tmp_path / "gone.tar")).damage
    assert listing == shard.list()
    assert len(made) == 5
    assert all(a.entry is b for a, b in zip(made, listing.entries, strict=True))
    assert damage == "cannot be read (No such file or directory)"


def test_one_that_is_killed_ends_the_job_and_says_what_to_do(tmp_path):
    given = entries(tmp_path, 20)
    (tmp_path / "3").write_bytes(b"end")
    given[3] = replace(given[3], image=Location(tmp_path / "3", 0, 3))
    pool = DecodePool(replace(SETTINGS, decode_processes=2))
    with pool, pytest.raises(UnavailableError, match=r"decode process ended; .* /dev/shm full"):
        list(pool.prepare(given, decode))


def test_they_end_when_their_parent_is_killed(tmp_path):
    line = [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path))]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        parent.kill()
    assert len(pids) == 2
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.1)
