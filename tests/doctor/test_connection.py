"""Looking at a cluster leaves this process as it was."""

import os
from contextlib import nullcontext

import pytest

from clipray import cluster
from clipray.doctor.connection import UnreachableError, connected


def refused():
    raise RuntimeError("no token")


@pytest.mark.parametrize("before", ["10.0.0.1:6379", None])
@pytest.mark.parametrize("session", [nullcontext, refused])
def test_the_address_of_another_cluster_is_put_back(before, session, monkeypatch):
    monkeypatch.setattr(cluster, "require_answer", lambda address: None)
    monkeypatch.setattr(cluster, "session", session)
    monkeypatch.delenv(cluster.ADDRESS, raising=False)
    if before:
        monkeypatch.setenv(cluster.ADDRESS, before)
    try:
        with connected("10.0.0.2:6379"):
            assert os.environ[cluster.ADDRESS] == "10.0.0.2:6379"
    except UnreachableError:
        assert session is refused
    assert os.environ.get(cluster.ADDRESS) == before
