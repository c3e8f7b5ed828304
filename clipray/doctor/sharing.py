"""Whether a folder or store is the same for all nodes: a file written here is read there."""

import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from clipray import storage, uri
from clipray.doctor.finding import Finding, ok, problem, warning
from clipray.errors import ClipRayError

LOOKS = 4  # one a second: a network disk may remember for a while what was not there
READ_ONLY = "read only"


@dataclass(frozen=True)
class Written:
    """A probe file.

    Attributes:
        name: in the place.
        content: what it holds.
    """

    name: str
    content: bytes


def check(place: str) -> Iterator[Finding]:
    """Whether this machine alone can write and read there."""
    try:
        with probe_file(place) as file:
            seen = look(place, file.name, file.content)
    except (ClipRayError, OSError) as error:
        yield unwritable(place, error)
        return
    yield from judge(place, {"this machine": seen})


@contextmanager
def probe_file(place: str) -> Iterator[Written]:
    """Write one, and remove it after the block.

    Raises:
        ClipRayError: the place cannot be opened.
        OSError: it cannot be written.
    """
    root, written = uri.at(place), Written(f"clipray-doctor-{secrets.token_hex(8)}", os.urandom(32))
    path = root / written.name
    if uri.is_local(path):
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{path.parent} is no folder here")
        storage.write_file(path, written.content)
    else:
        uri.create(path, written.content)
    try:
        yield written
    finally:
        path.unlink(missing_ok=True)


def look(place: str, name: str, content: bytes) -> str | None:
    """Read the probe file where this runs.

    Returns:
        None where it is as it was written, else what is wrong.
    """
    told: str | None = None
    for attempt in range(LOOKS):
        time.sleep(1.0 if attempt else 0.0)
        told = _look(place, name, content)
        if told in (None, READ_ONLY):
            break
    return told


def judge(place: str, seen: Mapping[str, str | None]) -> Iterator[Finding]:
    """What the nodes saw, by their names."""
    blind = {node: told for node, told in seen.items() if told not in (None, READ_ONLY)}
    bound = [node for node, told in seen.items() if told == READ_ONLY]
    if blind:
        told = "; ".join(f"node '{node}': {why}" for node, why in blind.items())
        yield problem(
            "shared storage",
            f"{place}: {len(blind)} of {len(seen)} nodes do not see it: {told}",
            "mount it there at the same path, or use a URI; indices can do without, with "
            "--placement node",
        )
    if bound:
        found = f"{place}: cannot be written on {', '.join(bound)}"
        yield warning("shared storage", found, "mount it there for writing")
    if seen and not blind and not bound:
        yield ok("shared storage", f"{place}: {len(seen)} nodes see what is written here")


def unwritable(place: str, error: Exception) -> Finding:
    """It cannot even be written here."""
    advice = "create it, or mend its rights or credentials, here and on all nodes"
    return problem("shared storage", f"{place}: cannot be written here ({error})", advice)


def _look(place: str, name: str, content: bytes) -> str | None:
    try:
        root = uri.at(place)
        found = uri.read(root / name, 0, len(content) + 1)
    except FileNotFoundError:
        return "there is nothing of it" if Path(place).is_dir() else "no such folder"
    except (ClipRayError, OSError) as error:
        return str(error)
    if found != content:
        return "another file is there"
    return READ_ONLY if uri.is_local(root) and not os.access(root, os.W_OK) else None
