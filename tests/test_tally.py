"""Samples are counted as they go through, and the bar never says more than is true."""

import time

import pytest

from clipray.tally import Bar, Tally, drawn


def test_a_tally_adds_up():
    tally = Tally()
    tally.add(3)
    tally.add(4)
    assert tally.total() == 7


def test_the_bar_follows_and_ends_at_what_is_finished(capsys):
    tally = Tally()
    with drawn(tally.total, 10, 2) as bar:
        tally.add(7)
        time.sleep(0.8)
        bar.finish(4, 1)
        bar.finish(6, 0)
    shown = capsys.readouterr().err
    assert "7/10" in shown or "10/10" in shown
    assert "10/10" in shown
    assert "2/2 shards, 1 rejected" in shown


def test_samples_that_are_done_again_do_not_pass_the_end(capsys):
    bar = Bar(10, 1)
    bar.running(25)  # an actor died and its shard was done again
    bar.close()
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "25" not in shown


def test_an_unknown_number_of_samples_is_estimated(capsys):
    bar = Bar(None, 4)
    bar.finish(50, 0)
    bar.close()
    assert "50/200" in capsys.readouterr().err


def test_a_lost_count_ends_nothing(capsys):
    def lost():
        raise RuntimeError("the actor is gone")

    with drawn(lost, 3, 1) as bar:
        time.sleep(0.8)
        bar.finish(3, 0)
    assert "3/3" in capsys.readouterr().err


def test_an_error_inside_passes():
    with pytest.raises(KeyError), drawn(lambda: 0, 1, 1):
        raise KeyError
