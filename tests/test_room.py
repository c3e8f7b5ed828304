"""Room for workers on the nodes that there are."""

import pytest

from clipray import room
from clipray.errors import ConfigError
from clipray.nodes import Needs
from tests.test_fleet import node


@pytest.mark.parametrize(
    ("alive", "needs", "workers"),
    [
        ([], Needs(), 0),
        ([node(0)], Needs(), 0),
        ([node(4), node(3)], Needs(cpus=2), 3),
        ([node(8, 2), node(8)], Needs(gpus=1), 2),
        ([node(1, 2)], Needs(gpus=1), 1),
        ([node(4, 1)], Needs(gpus=0.5), 2),
        ([node(0, 1)], Needs(cpus=0, gpus=1), 1),
    ],
)
def test_workers_fit_by_cpus_and_gpus_of_each_node(alive, needs, workers):
    assert room.count(alive, needs) == workers


@pytest.mark.parametrize(
    ("alive", "gpus", "cpus"),
    [
        ([node(32, 4), node(64)], 1, 8),
        ([node(32, 4), node(16, 4)], 1, 4),
        ([node(32, 4)], 0.5, 4),
        ([node(2, 4)], 1, 0),
        ([node(64)], 1, 1),
        ([node(64, 1)], 0, 1),
    ],
)
def test_a_worker_has_its_share_of_the_cpus_beside_gpus(alive, gpus, cpus):
    assert room.share(alive, gpus) == cpus


def test_nothing_is_said_of_what_is_there(ray_session, caplog):
    room.wait(Needs(cpus=2), 2)
    assert not caplog.records


def test_what_one_machine_cannot_have_is_refused(ray_session):
    with pytest.raises(ConfigError, match=r"1 × \(CPU 1, GPU 9\) asked for, .* GPU 0; ask"):
        room.wait(Needs(gpus=9))
