"""Metrics as lines and as event files; a run that goes back loses what came after."""

import json
import sys
from types import SimpleNamespace

import pytest
from tensorboardX.proto.event_pb2 import Event

from clipray.config import Config
from clipray.errors import ConfigError
from clipray.training.logbook import BOARD_FOLDER, Logbook, LogConfig
from clipray.training.metrics import METRICS_FILE, read_metrics


def write(folder, steps, start=0, **options):
    with Logbook.opened(folder, LogConfig(**options), start, Config()) as book:
        for step in steps:
            book.write({"step": step, "loss": 10.0 - step, "image_to_text_R@1": 0.5})
        book.flush()
        return read_metrics(folder / METRICS_FILE)


def scalars(folder):
    """(tag, step, value) of all event files: length, checksum, event, checksum each."""
    found = []
    for path in sorted((folder / BOARD_FOLDER).iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            event = Event.FromString(data[12 : 12 + size])
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
            data = data[16 + size :]
    return found


def test_lines_and_events_are_written(tmp_path):
    lines = write(tmp_path, [1, 2])
    assert [line["loss"] for line in lines] == [9.0, 8.0]
    assert all(line["time"] > 1e9 for line in lines)
    assert ("train/loss", 2, 8.0) in scalars(tmp_path)
    assert lines[0]["image_to_text_R@1"] == 0.5
    assert ("val/image_to_text_R_1", 2, 0.5) in scalars(tmp_path)


def test_what_came_after_the_checkpoint_is_cut_off(tmp_path):
    write(tmp_path, [1, 2, 3])
    with (tmp_path / METRICS_FILE).open("a") as stream:
        stream.write('{"step": 4, "lo')
    assert [line["step"] for line in write(tmp_path, [3, 4], start=2)] == [1, 2, 3, 4]


def test_the_board_can_be_left_out(tmp_path):
    write(tmp_path, [1], tensorboard=False)
    assert not (tmp_path / BOARD_FOLDER).exists()


def test_weights_and_biases_is_told_when_it_is_there(tmp_path, monkeypatch):
    told = []
    run = SimpleNamespace(log=lambda values, step: told.append((step, values)), finish=told.clear)
    begun = {}
    fake = SimpleNamespace(init=lambda **options: begun.update(options) or run)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    with Logbook.opened(tmp_path, LogConfig(wandb="drawings"), 0, Config()) as book:
        book.write({"step": 1, "epoch": 0, "loss": 2.0})
        assert told == [(1, {"train/loss": 2.0})]
    assert begun["project"] == "drawings"
    assert not told


def test_weights_and_biases_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match="pip install wandb"):
        write(tmp_path, [1], wandb="drawings")


def test_lines_are_json(tmp_path):
    write(tmp_path, [1])
    assert json.loads((tmp_path / METRICS_FILE).read_text())["step"] == 1
