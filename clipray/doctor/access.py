"""Who can use the cluster: tokens, and the dashboard, which runs whatever it is sent."""

import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass

from ray._private.worker import get_dashboard_url

from clipray.doctor.finding import Finding, note, ok, problem, warning
from clipray.serve.addresses import host_of, is_loopback

ASKED_S = 5.0
REFUSED = (401, 403)
MODE = "RAY_AUTH_MODE"
TELL_TOKEN = (
    "give all nodes and users one token (ray get-auth-token --generate) and start the nodes with "
    f"{MODE}=token"
)


@dataclass(frozen=True)
class Access:
    """Facts.

    Attributes:
        mode: what RAY_AUTH_MODE says here; empty where it says nothing.
        nodes: of the cluster.
        dashboard: its host and port; None where there is none.
        status: what it answers to a request without a token; None where it does not answer.
    """

    mode: str
    nodes: int
    dashboard: str | None = None
    status: int | None = None


def collect(nodes: int) -> Access:
    """Ask the dashboard of the running cluster as a stranger would."""
    url = get_dashboard_url() or None  # type: ignore[no-untyped-call]
    status = _status(f"http://{url}/api/version") if url else None
    return Access(os.environ.get(MODE, ""), nodes, url, status)


def judge(access: Access) -> Iterator[Finding]:
    """Who is let in."""
    if access.dashboard is None:
        yield note("dashboard", "none", "jobs and `serve deploy` need it: start it with the head")
        yield from _by_mode(access)
        return
    if access.status is None:
        advice = "ask from the head's network; `ray job submit` and `serve deploy` need it as well"
        yield warning("dashboard", f"{access.dashboard} does not answer from here", advice)
        yield from _by_mode(access)
        return
    alone = is_loopback(host_of(access.dashboard.encode()))
    where = "on loopback" if alone else "reachable from other machines"
    if access.status in REFUSED:
        yield ok("dashboard", f"{access.dashboard} ({where}) asks for a token")
    elif alone and access.nodes == 1:
        found = f"{access.dashboard} ({where}) asks for no token: all users here can run code"
        yield warning("dashboard", found, TELL_TOKEN)
    else:
        found = f"{access.dashboard} ({where}) asks for no token: who reaches the cluster runs code"
        yield problem("dashboard", found, TELL_TOKEN)


def _by_mode(access: Access) -> Iterator[Finding]:
    if access.mode == "token":
        yield ok("token", f"{MODE}=token")
    elif access.nodes > 1:
        yield problem("token", "off: who reaches the cluster runs code on it", TELL_TOKEN)
    else:
        yield note("token", f"{MODE} is '{access.mode}': all users of this machine can run code")


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=ASKED_S) as response:  # noqa: S310  http only
            return int(response.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return None
