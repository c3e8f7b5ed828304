"""Where a run and its command meet: what one process leaves there, another fetches."""

import logging
from contextlib import closing

import pytest
import ray

from clipray.desk import MOST_SAID, Desk, DeskHandler, DeskSignals

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def desk():
    with closing(Desk()) as opened:
        yield opened


@ray.remote(num_cpus=0)
def work(desk):
    """As a rank does."""
    desk.tell([{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}])
    desk.say("a picture of 3 € is passed over")
    desk.tell([{"step": 3, "loss": 0.25}])
    return DeskSignals(desk, alone=False).stop_asked()


def test_what_a_worker_leaves_is_fetched_once_and_in_its_order(desk):
    assert not ray.get(work.remote(desk))
    lines, said = desk.fetch()
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert said == ["a picture of 3 € is passed over"]
    assert desk.fetch() == ([], [])


def test_a_worker_hears_that_it_should_stop(desk):
    desk.stop()
    assert ray.get(work.remote(desk))


def test_two_runs_do_not_hear_each_other(desk):
    with closing(Desk()) as other:
        other.say("mine")
        other.stop()
        assert desk.fetch() == ([], [])
        assert not desk.stop_asked()


def test_nothing_is_left_of_a_closed_one(desk):
    with closing(Desk()) as closed:
        closed.tell([{"step": 1}])
        closed.stop()
    assert closed.fetch() == ([], [])
    assert not closed.stop_asked()


def test_the_end_is_not_asked_for_at_every_step(desk, monkeypatch):
    signals, asked = DeskSignals(desk, alone=True), []
    monkeypatch.setattr(Desk, "stop_asked", lambda desk: asked.append(1))
    for _ in range(100):
        signals.stop_asked()
    assert len(asked) == 1


def test_a_run_alone_does_not_ask_ray_whether_its_node_goes_away(desk):
    assert not DeskSignals(desk, alone=True).preempted()
    with pytest.raises(RuntimeError, match="get_preemption_info"):  # only in a run can it be asked
        DeskSignals(desk, alone=False).preempted()


def test_of_many_warnings_some_are_shown(desk):
    log = logging.Logger("worker")
    log.addHandler(DeskHandler(desk))
    for number in range(MOST_SAID + 10):
        log.warning("bad sample %d", number)
    _, said = desk.fetch()
    assert said[0] == "bad sample 0"
    assert said[-1] == "more warnings of this worker are in Ray's logs alone"
    assert len(said) == MOST_SAID
