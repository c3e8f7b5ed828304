"""Where the access log of an ingress replica goes: to its stderr, and so to Ray's log files."""

import logging

from clipray.serve.exchange import access


def to_stderr() -> None:
    """Write the lines of this process to its stderr, as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    access.addHandler(handler)
    access.setLevel(logging.INFO)
    access.propagate = False
