"""Where the pieces of a job on an index run: here, or wherever the caller's workers are."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

Done = tuple[int, Any]  # the number of a call, and what it returned


class Workers(Protocol):
    """Run a function on many arguments, each independent of the others."""

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        on: Sequence[str | None] | None = None,
    ) -> Iterator[Done]:
        """Number and result of each call, as they end.

        Args:
            function: importable by its name.
            calls: its arguments; the first is the root of the index folder.
            on: name of the node that each call must run on; None for any.
        """


class Here:
    """One call after the other, in this process."""

    def run(
        self,
        function: Callable[..., Any],
        calls: Sequence[tuple[Any, ...]],
        on: Sequence[str | None] | None = None,
    ) -> Iterator[Done]:
        """Number and result of each call, in order."""
        for number, call in enumerate(calls):
            yield number, function(*call)
