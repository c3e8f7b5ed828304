"""Ranks on several machines listen where the others can reach them."""

import os
import socket

import pytest
from ray.train.torch import TorchConfig

from clipray import ranks
from clipray.ranks import INTERFACE, RankBackend, RankConfig, interface_of


class Group:
    """Workers with addresses, as Ray directs them: what they are to do is done here, once."""

    def __init__(self, *addresses):
        self._addresses = addresses

    def execute(self, function):
        if function is ranks.nodes.own_address:
            return list(self._addresses)
        return [function()]


@pytest.fixture
def begun(monkeypatch):
    """Groups that Ray has set up."""
    found = []
    monkeypatch.delenv(INTERFACE, raising=False)
    monkeypatch.setattr(ranks.nodes, "own_address", lambda: "127.0.0.1")
    began = TorchConfig().backend_cls
    monkeypatch.setattr(began, "on_start", lambda self, group, config: found.append(group))
    return found


@pytest.mark.parametrize(
    ("addresses", "chosen"),
    [(("10.0.0.1", "10.0.0.2"), "lo"), (("10.0.0.1", "10.0.0.1"), None), (("10.0.0.1",), None)],
)
def test_only_ranks_on_several_machines_choose_an_interface(begun, addresses, chosen):
    group = Group(*addresses)
    RankBackend().on_start(group, RankConfig())
    assert os.environ.pop(INTERFACE, None) == chosen
    assert begun == [group]


def test_the_choice_of_the_user_stands(begun, monkeypatch):
    monkeypatch.setenv(INTERFACE, "ib0")
    RankBackend().on_start(Group("10.0.0.1", "10.0.0.2"), RankConfig())
    assert os.environ[INTERFACE] == "ib0"


def test_interfaces_are_found_by_address():
    assert interface_of("127.0.0.1") in {name for _, name in socket.if_nameindex()}
    assert interface_of("203.0.113.1") is None
