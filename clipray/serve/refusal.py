"""What the service says to a request that it does not take."""

import json
from dataclasses import dataclass

Headers = tuple[tuple[bytes, bytes], ...]

RETRY = ((b"retry-after", b"1"),)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A reply that is an error.

    Attributes:
        status: of HTTP.
        kind: name of the error, most often one of `clipray.errors`.
        message: what was found, what was expected, what to do.
        headers: what this status needs besides.
    """

    status: int
    kind: str
    message: str
    headers: Headers = ()

    @property
    def body(self) -> bytes:
        """As JSON; ASCII, so that what a request held cannot break it."""
        error = {"type": self.kind, "message": self.message}
        return json.dumps({"error": error}).encode()
