"""Memory stays flat: neither the driver nor an actor of an embedding job grows with the shards."""

import time

import pytest

from tests.drawing import write_shards
from tests.processes import of_session, start_silent

PER_SHARD = 60
LIMIT_S = 300
ROOM_MB = 24  # what two runs of the same job differ by


def peaks(arguments):
    """Most memory in MB that the driver held, and any encoder actor."""
    driver = actor = 0.0
    began = time.monotonic()
    with start_silent(arguments) as process:
        while process.poll() is None:
            assert time.monotonic() - began < LIMIT_S
            for found in of_session(process.pid):
                if found.pid == process.pid:
                    driver = max(driver, found.memory_mb)
                elif "MapWorker" in found.name:
                    actor = max(actor, found.memory_mb)
            time.sleep(0.05)
        assert process.returncode == 0
    return driver, actor


@pytest.mark.soak
def test_ten_times_the_shards_take_the_same_memory(model, tmp_path, record_property):
    found = {}
    for shards in (10, 100):
        data = write_shards(tmp_path / f"{shards}", shards * PER_SHARD, PER_SHARD)
        command = ("embed", "--input", data, "--model", model, "--max-workers", "1", "--output")
        found[shards] = peaks([*command, tmp_path / f"out-{shards}"])
        record_property(f"{shards} shards", found[shards])
    for place in (0, 1):
        assert found[100][place] < found[10][place] + ROOM_MB, found
    print("driver, actor in MB by shards:", found)  # noqa: T201  a soak test shows its figures
