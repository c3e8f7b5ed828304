"""An address where no cluster is, is told at once."""

import socket
import sys

import pytest

from clipray import cluster
from clipray.errors import ConfigError, UnavailableError


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_refused(scheme):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cluster.require_answer(f"{scheme}127.0.0.1:{port}")
    with pytest.raises(UnavailableError, match=f"nothing answers at {scheme}127.0.0.1:{port}"):
        cluster.require_answer(f"{scheme}127.0.0.1:{port}")


def test_the_address_of_a_dashboard_is_refused():
    with pytest.raises(ConfigError, match="the address of a dashboard; give the head's HOST:6379"):
        cluster.require_answer("http://127.0.0.1:8265")


def test_words_of_ray_are_left_to_it():
    cluster.require_answer("auto")


@pytest.mark.parametrize("watched", [True, False])
def test_whoever_watches_is_told_that_ray_starts(monkeypatch, capsys, watched):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(cluster.ray, "init", lambda **options: None)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: watched)
    with cluster.session():
        assert ("starting Ray" in capsys.readouterr().err) is watched


def test_a_command_asks_before_ray_does(monkeypatch):
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(ConfigError, match="dashboard"), cluster.session():
        pass
