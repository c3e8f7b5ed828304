"""The metrics of a run are lines that any process can follow."""

import json
import time

import pytest

from clipray.training.metrics import MetricsWriter, followed, read_metrics, samples_per_s


def test_lines_are_seen_at_once_and_read_in_order(tmp_path):
    path = tmp_path / "metrics.jsonl"
    before = time.time()
    with path.open("w", encoding="utf-8") as stream:
        writer = MetricsWriter(stream)
        for step in (1, 2):
            writer.write({"step": step, "loss": 0.5})
            assert [line["step"] for line in read_metrics(path)] == list(range(1, step + 1))
    assert all(before <= line["time"] <= time.time() for line in read_metrics(path))


def test_speed_is_from_the_first_line_to_the_last():
    lines = [{"step": step, "time": 10.0 + step / 4} for step in range(5)]
    assert samples_per_s(lines, 8) == pytest.approx(32)
    assert samples_per_s(lines[:1], 8) == samples_per_s([], 8) == 0


def test_the_progress_bar_follows_the_file_to_its_end(tmp_path, capsys):
    path = tmp_path / "metrics.jsonl"
    with followed(path, steps=3, batch_size=10):
        lines = [{"step": n, "loss": 0.25 * n, "time": float(n)} for n in (1, 2, 3)]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        time.sleep(0.6)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "loss 0.750, 10 samples/s" in shown


def test_a_run_that_fails_before_its_first_step_ends_the_bar(tmp_path):
    with pytest.raises(KeyError), followed(tmp_path / "none", steps=3, batch_size=10):
        raise KeyError
