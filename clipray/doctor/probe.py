"""One actor on every node, which says what is there; asked with a deadline.

A node that does not answer is a finding and keeps nobody waiting.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipray.doctor import machine, versions
from clipray.doctor.machine import Machine
from clipray.doctor.sharing import look
from clipray.doctor.versions import Versions
from clipray.nodes import Node

ANSWER_S = 30.0  # a process starts, on a busy machine
PING_S = 5.0
PINGS = 5


class Probe:
    """What runs on a node."""

    def facts(self) -> tuple[Versions, Machine]:
        """Of the node, as its Ray was started."""
        return versions.collect(), machine.collect()

    def clock(self) -> float:
        """Seconds since 1970, by the clock of the node."""
        return time.time()

    def look(self, place: str, name: str, content: bytes) -> str | None:
        """See `sharing.look`."""
        return look(place, name, content)


@dataclass(frozen=True)
class Clock:
    """How far the clock of a node is ahead of this one's.

    Attributes:
        ahead: seconds.
        unsure: seconds that this may be off: half of the fastest round trip.
    """

    ahead: float
    unsure: float


@contextmanager
def probes(nodes: Sequence[Node]) -> Iterator[Mapping[str, Any]]:
    """Actors by the ids of their nodes; they take no CPU, so that a busy node answers too."""
    kind = ray.remote(num_cpus=0, max_restarts=0)(Probe)
    actors: dict[str, Any] = {
        node.id: kind.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False)
        ).remote()
        for node in nodes
    }
    try:
        yield actors
    finally:
        for actor in actors.values():
            ray.kill(actor)


def answers(
    actors: Mapping[str, Any], ask: Callable[[Any], Any], seconds: float = ANSWER_S
) -> dict[str, Any]:
    """What all say by the deadline; in place of an answer, the error, or a TimeoutError.

    Args:
        actors: by node id.
        ask: sends the question to one of them.
        seconds: until the deadline.
    """
    references = {node: ask(actor) for node, actor in actors.items()}
    waiting = list(references.values())
    ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=seconds)
    return {
        node: _answer(reference)
        if reference in ready
        else TimeoutError(f"silent for {seconds:g} s")
        for node, reference in references.items()
    }


def clock(actor: Any) -> Clock | Exception:
    """Compare the clock of a node, by the fastest of a few round trips."""
    trips = []
    for _ in range(PINGS):
        began = time.time()
        try:
            there: float = ray.get(actor.clock.remote(), timeout=PING_S)
        except ray.exceptions.RayError as error:
            return error
        took = time.time() - began
        trips.append(Clock(there - began - took / 2, took / 2))
    return min(trips, key=lambda trip: trip.unsure)


def _answer(reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayError as error:
        return error
