"""Lines of metrics, and what a person sees of them."""

import json

import pytest

from clipray.training.metrics import Progress, data_wait, read_metrics, samples_per_s


def lines(*steps):
    told = {"loss": 0.25, "waited": 0.1, "lr": 1e-3, "logit_scale": 14.3}
    return [{"step": step, "time": float(step), **told} for step in steps]


def test_a_line_that_was_cut_off_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1.0}) + '\n{"step": 2')
    assert read_metrics(path) == [{"step": 1.0}]


def test_speed_and_wait_are_from_the_first_line_to_the_last():
    assert samples_per_s(lines(1, 2, 3, 4, 5), 8) == pytest.approx(8)
    assert data_wait(lines(1, 2, 3)) == pytest.approx(0.1)
    assert samples_per_s(lines(1), 8) == samples_per_s([], 8) == data_wait([]) == 0


def test_the_bar_tells_what_happens(capsys):
    with Progress(4, 20, workers=2) as progress:
        progress.draw([])
        progress.draw(lines(1, 2))
        progress.draw(lines(3, 4))
    shown = capsys.readouterr().err
    assert "starting workers" in shown
    assert "4/4" in shown
    told = "loss 0.250, 10 samples/s a worker, data wait 10%, lr 0.001, scale 14.3"
    assert told in shown


def test_an_evaluation_is_told(capsys):
    with Progress(9, 20, workers=1) as progress:
        progress.draw([*lines(1), {"step": 1, "epoch": 0, "image_to_text_R@1": 0.25}])
    assert "after epoch 1: image_to_text_R@1 0.25\n" in capsys.readouterr().err


def test_the_bar_goes_back_to_where_a_run_goes_on(capsys):
    with Progress(9, 20, workers=1) as progress:
        progress.draw(lines(1, 2, 3, 4, 5))
        progress.draw(lines(4))
    shown = capsys.readouterr().err
    assert "5/9" in shown
    assert shown.rstrip().rpartition("\r")[2].count("4/9") == 1


def test_a_run_that_fails_before_its_first_step_ends_the_bar():
    with pytest.raises(KeyError), Progress(3, 10, 1):
        raise KeyError
