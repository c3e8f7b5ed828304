"""Getting hold of a running cluster, with a reason where that fails."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from clipray import cluster
from clipray.doctor.finding import Finding, problem

REACHED_S = 5.0
ADDRESS = "RAY_ADDRESS"


class UnreachableError(Exception):
    """The cluster cannot be used; `finding` says why."""

    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.found)
        self.finding = finding


@contextmanager
def connected(address: str) -> Iterator[None]:
    """Be connected to a running cluster.

    Args:
        address: as RAY_ADDRESS has it.

    Raises:
        UnreachableError: it does not answer, or does not let this process in.
    """
    _require_listening(address)
    os.environ[ADDRESS] = address
    with ExitStack() as stack:
        try:
            stack.enter_context(cluster.session())
        except Exception as error:  # Ray raises all sorts here
            raise UnreachableError(_refused(address, error)) from error
        yield


def _require_listening(address: str) -> None:
    """Ray itself would try for a minute."""
    if address.startswith(("http://", "https://")):
        found = f"{ADDRESS}={address} is the address of a dashboard"
        raise UnreachableError(problem("cluster", found, "give the head's HOST:6379 here"))
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not (host and port.isdecimal()):
        return  # such as auto
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACHED_S).close()
    except OSError as error:
        found = f"nothing answers at {address} ({error})"
        advice = "start the head, name its address (HOST:6379), or open that port in between"
        raise UnreachableError(problem("cluster", found, advice)) from error


def _refused(address: str, error: Exception) -> Finding:
    told = [str(one) for one in (error, error.__cause__) if one is not None]
    if "AuthenticationError" in " ".join(told) or "InvalidAuthToken" in " ".join(told):
        found = f"{address} lets only those in who have its token"
        advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on the head"
        return problem("cluster", found, advice)
    line = (told[0].strip().splitlines() or [type(error).__name__])[0]
    return problem("cluster", f"{address or 'Ray'}: {line}", "ray status says whether it runs")
