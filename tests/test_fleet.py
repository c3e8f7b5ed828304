"""How many actors there are, and what each gets."""

import pytest

from clipray.fleet import Fleet, plan_fleet
from clipray.nodes import Node


def node(cpus, gpus=0):
    return Node(name="a", id="", address="", cpus=cpus, gpus=gpus, labelled=True)


LAPTOP, NODE, NONE = [node(8)], [node(64, 4)], [node(0)]
MIXED = [node(0), node(96), node(8, 1), node(32, 2)]


@pytest.mark.parametrize(
    ("alive", "fewest", "most", "gpus", "samples", "shards", "expected"),
    [
        (LAPTOP, 1, None, None, 50_000, 50, Fleet(1, 8, 1, 0)),
        (LAPTOP, 1, None, None, 2_500, 50, Fleet(1, 3, 1, 0)),  # a start must pay
        (LAPTOP, 1, None, None, 50_000, 2, Fleet(1, 2, 1, 0)),
        (LAPTOP, 1, None, None, None, 50, Fleet(1, 8, 1, 0)),
        (LAPTOP, 1, None, None, 0, 1, Fleet(1, 1, 1, 0)),
        (LAPTOP, 1, 3, None, 10, 50, Fleet(1, 3, 1, 0)),  # what the user says counts
        (LAPTOP, 4, None, None, 10, 50, Fleet(4, 4, 1, 0)),
        (LAPTOP, 4, 2, None, 10, 50, Fleet(4, 4, 1, 0)),
        (NODE, 1, None, None, 10**9, 10**5, Fleet(1, 4, 16, 1)),
        (NODE, 1, None, 0.5, 10**9, 10**5, Fleet(1, 8, 8, 0.5)),
        (NODE, 1, None, 0, 10**9, 10**5, Fleet(1, 64, 1, 0)),
        (LAPTOP, 1, 2, 1, 10**9, 10**5, Fleet(1, 2, 1, 1)),  # GPUs that an autoscaler will bring
        (NONE, 1, 5, None, 10**9, 10**5, Fleet(1, 5, 1, 0)),
        (NONE, 2, 5, 1, 10**9, 10**5, Fleet(2, 5, 1, 1)),
        (MIXED, 1, None, None, 10**9, 10**5, Fleet(1, 3, 8, 1)),  # as the smallest node has it
        (MIXED, 1, None, 2, 10**9, 10**5, Fleet(1, 1, 32, 2)),
        (MIXED, 1, None, 0, 10**9, 10**5, Fleet(1, 136, 1, 0)),
    ],
)
def test_what_is_left_open_is_chosen_by_what_there_is(
    alive, fewest, most, gpus, samples, shards, expected
):
    assert plan_fleet(alive, fewest, most, gpus, samples=samples, shards=shards) == expected


def test_decoding_takes_the_cpus_of_an_actor():
    assert Fleet(1, 1, 16, 1).decode_threads == 16
    assert Fleet(1, 1, 1, 0).decode_threads == 2


def test_beside_a_gpu_processes_decode_and_one_cpu_is_the_encoders():
    assert Fleet(1, 1, 16, 1).decode_processes == 15
    assert (Fleet(1, 1, 16, 1).batch_size, Fleet(1, 1, 16, 0).batch_size) == (256, 64)
    assert Fleet(1, 1, 1, 1).decode_processes == 0
    assert Fleet(1, 1, 16, 0).decode_processes == 0
