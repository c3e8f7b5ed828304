"""Where the pieces of a job on an index run: here, or wherever the caller's workers are.

Every function that they are given takes the root of the index folder first: a node that keeps its
shards to itself has a root of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

Arguments = tuple[Any, ...]  # after the root
Function = Callable[..., Any]


class Done(NamedTuple):
    """A finished call: its number, what it returned, and the name of the node that ran it."""

    call: int
    result: Any
    node: str | None


class Workers(Protocol):
    """Run a function on many arguments, each independent of the others."""

    def run(
        self, function: Function, calls: Sequence[Arguments], on: Sequence[str | None] | None = None
    ) -> Iterator[Done]:
        """Every call, as they end.

        Args:
            function: importable by its name; takes the root of the index first.
            calls: its other arguments.
            on: name of the node that each call must run on; None for any.
        """

    def everywhere(self, function: Function, arguments: Arguments) -> Mapping[str | None, Any]:
        """What the function returns on each node."""


class Here:
    """One call after the other, in this process."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run(
        self, function: Function, calls: Sequence[Arguments], on: Sequence[str | None] | None = None
    ) -> Iterator[Done]:
        """Every call, in order."""
        for number, call in enumerate(calls):
            yield Done(number, function(self.root, *call), None)

    def everywhere(self, function: Function, arguments: Arguments) -> Mapping[str | None, Any]:
        """What it returns here."""
        return {None: function(self.root, *arguments)}


def in_order(done: Iterable[Done]) -> list[Done]:
    """All of them, by the numbers of their calls."""
    return sorted(done, key=lambda each: each.call)
