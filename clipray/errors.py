"""Everything that clipray raises on purpose.

    ClipRayError                 something went wrong; the command ends with exit code 1
    ├── UsageError               the user can mend it; exit code 2
    │   ├── ConfigError          a key, value or combination of options
    │   ├── InputError           a folder or file that is missing, empty or not what it should be
    │   │   └── ImageError       bytes that are no picture we can use
    │   ├── OutputError          a folder that already holds something else
    │   ├── ModelError           a model that is unknown, has no weights or does not fit
    │   ├── MismatchError        two folders that do not belong together
    │   ├── AccessError          a key of the service that is missing, wrong or not enough
    │   └── QueryError           a search request that cannot be answered
    │       └── NotFoundError    a key, id or index that does not exist
    ├── DamagedError             a file of ours that is cut, changed or missing
    └── UnavailableError         a node or part of a service is gone; the same may succeed later
        ├── OverloadedError      a service has more to do than it takes on
        └── StaleError           a version of an index that is open no more, or not yet

A message says what was found, what was expected and what to do.
"""

import re
from collections.abc import Iterator
from typing import ClassVar


class ClipRayError(Exception):
    """Base of all errors; `exit_code` is what the command line returns for it."""

    exit_code: ClassVar[int] = 1


class UsageError(ClipRayError):
    """Something the user asked for cannot be done as asked."""

    exit_code: ClassVar[int] = 2


class ConfigError(UsageError):
    """An option, a configuration key or its value is wrong."""


class InputError(UsageError):
    """An input is missing, empty or of another kind than expected."""


class ImageError(InputError):
    """Bytes that cannot be decoded to a picture within the limits."""


class OutputError(UsageError):
    """The output folder already holds something that we must not overwrite."""


class ModelError(UsageError):
    """A model is unknown, has no weights or cannot be loaded."""


class MismatchError(UsageError):
    """Two artefacts do not belong together, such as an index and a model."""


class AccessError(UsageError):
    """A request to a service carries no key, a wrong one, or one that does not allow it."""


class QueryError(UsageError):
    """A search request is malformed or asks for something that does not exist."""


class NotFoundError(QueryError):
    """A search request names a key, an id or an index that does not exist."""


class DamagedError(ClipRayError):
    """A file that clipray wrote is truncated, changed or missing."""


class UnavailableError(ClipRayError):
    """A node is gone, or too few shards of a service answer; the same may succeed later."""


class OverloadedError(UnavailableError):
    """A service has more to do than it takes on; the same may succeed later."""


class StaleError(UnavailableError):
    """A version of an index that a part of a service has open no more, or not yet."""


def from_remote(told: str, what: str) -> ClipRayError:
    """The error behind a remote traceback, which Ray often hands on as text only.

    Args:
        told: the text.
        what: opens the message when the error is none of ours.
    """
    for name, message in reversed(re.findall(r"clipray\.errors\.(\w+): (.+)", told)):
        if kind := named(name):
            return kind(message)
    raised = re.findall(r"^[\w.]*(?:Error|Exception)\b.*", told, re.MULTILINE)
    lines = raised or told.strip().splitlines() or ["no reason given"]
    return ClipRayError(f"{what}: {lines[-1].strip()}")


def named(name: str) -> type[ClipRayError] | None:
    """The class of ours with this name."""
    return next((kind for kind in _leaves(ClipRayError) if kind.__name__ == name), None)


def _leaves(kind: type[ClipRayError]) -> Iterator[type[ClipRayError]]:
    yield kind
    for leaf in kind.__subclasses__():
        yield from _leaves(leaf)


def plain(error: BaseException) -> BaseException:
    """The error itself, where Ray has wrapped it together with a remote traceback."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error
