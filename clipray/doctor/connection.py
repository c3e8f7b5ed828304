"""Getting hold of a running cluster, with a reason where that fails."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from clipray import cluster
from clipray.doctor.finding import Finding, problem
from clipray.errors import ClipRayError


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
    with ExitStack() as stack:
        stack.enter_context(_address(address))
        try:
            stack.enter_context(cluster.session())
        except Exception as error:  # Ray raises all sorts here
            raise UnreachableError(_refused(address, error)) from error
        yield


@contextmanager
def _address(address: str) -> Iterator[None]:
    before = os.environ.get(cluster.ADDRESS)
    os.environ[cluster.ADDRESS] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[cluster.ADDRESS]
        else:
            os.environ[cluster.ADDRESS] = before


def _require_listening(address: str) -> None:
    try:
        cluster.require_answer(address)
    except ClipRayError as error:
        found, _, advice = str(error).partition("; ")
        raise UnreachableError(problem("cluster", found, advice)) from error


def _refused(address: str, error: Exception) -> Finding:
    told = [str(one) for one in (error, error.__cause__) if one is not None]
    if "AuthenticationError" in " ".join(told) or "InvalidAuthToken" in " ".join(told):
        found = f"{address} lets only those in who have its token"
        advice = "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or ~/.ray/auth_token as on the head"
        return problem("cluster", found, advice)
    line = (told[0].strip().splitlines() or [type(error).__name__])[0]
    return problem("cluster", f"{address or 'Ray'}: {line}", "ray status says whether it runs")
