"""The nodes of the running cluster: their lasting names, and tasks that are dealt out to them.

Ray's own node ids change with every restart. Here a node goes by the value of its Ray label
`clipray-node` (`ray start --labels clipray-node=NAME`), and without one by its hostname. A label
is needed where hostnames repeat or change, as those of containers do.

This module does not know what the tasks do, and starts no Ray.
"""

import hashlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipray.errors import ClipRayError, ConfigError, UnavailableError, plain

LABEL = "clipray-node"
ROOT_VARIABLE = "CLIPRAY_NODE_ROOT"
IN_FLIGHT = 1_000  # tasks that Ray is told of at once; the others wait here
ENDING_S = 1.0  # that short tasks have to finish before the others are cancelled

Argument = TypeVar("Argument")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Node:
    """A node that is alive.

    Attributes:
        name: that it keeps over restarts.
        id: Ray's, until its next restart.
        address: its IP address.
        cpus: logical CPUs in all, busy or not.
        gpus: likewise.
        labelled: whether the name is the one that its label gives it.
    """

    name: str
    id: str
    address: str
    cpus: float
    gpus: float
    labelled: bool


@dataclass(frozen=True, slots=True)
class Call(Generic[Argument]):
    """One task to run.

    Attributes:
        argument: the only one of the function.
        on: name of the node that it must run on.
        near: name of the node that it should run on: it waits for room there while that node is
            alive, and runs anywhere when it is not.
    """

    argument: Argument
    on: str | None = None
    near: str | None = None


@dataclass(frozen=True, slots=True)
class Needs:
    """What each task is given.

    Attributes:
        cpus: logical CPUs.
        gpus: likewise.
        retries: how often a task is begun again that was lost with its process or node.
    """

    cpus: float = 1
    gpus: float = 0
    retries: int = 3


ONE_CPU = Needs()


class Done(NamedTuple, Generic[Result]):
    """A finished task: place of its call, what it returned, name of the node that ran it."""

    call: int
    result: Result
    node: str


def run(
    function: Callable[[Argument], Result],
    calls: Sequence[Call[Argument]],
    needs: Needs = ONE_CPU,
) -> Iterator[Done[Result]]:
    """Run one task for each call and yield them as they end; unpinned ones spread over the nodes.

    When one fails or the iterator is closed, the others are cancelled.

    Args:
        function: of a module that the nodes can import.
        calls: what to run it on, and where.
        needs: of each task.

    Raises:
        UnavailableError: a node that a call must run on is not alive or too small, or a task was
            lost more often than it may be repeated.
        ConfigError: a call names a node by a name that several have.
        Exception: what the function raised.
    """
    task: Any = ray.remote(num_cpus=needs.cpus, num_gpus=needs.gpus, max_retries=needs.retries)(
        _perform
    )
    waiting = iter(enumerate(calls))
    running: dict[Any, int] = {}
    try:
        while True:
            for number, call in islice(waiting, IN_FLIGHT - len(running)):
                placed = task.options(scheduling_strategy=_strategy(call, needs))
                running[placed.remote(function, call.argument)] = number
            if not running:
                return
            (ready,), _ = ray.wait(list(running), num_returns=1)
            number = running.pop(ready)
            node, result = _outcome(ready, calls[number], needs)
            yield Done(number, result, node)
    finally:
        _cancel(list(running))


def alive() -> list[Node]:
    """All nodes that are alive, by name.

    Raises:
        ConfigError: two go by the same name.
    """
    nodes = sorted(present(), key=lambda node: node.name)
    for node, other in pairwise(nodes):
        if node.name == other.name:
            raise _ambiguous([node, other])
    return nodes


def present() -> Iterator[Node]:
    """All nodes that are alive, even where several go by one name."""
    for row in ray.nodes():  # type: ignore[no-untyped-call]
        if row["Alive"]:
            has = row["Resources"]
            yield Node(
                name=_name(row["Labels"], row["NodeManagerHostname"]),
                id=row["NodeID"],
                address=row["NodeManagerAddress"],
                cpus=has.get("CPU", 0),
                gpus=has.get("GPU", 0),
                labelled=bool(row["Labels"].get(LABEL)),
            )


def find(name: str) -> Node:
    """The node of that name.

    Raises:
        UnavailableError: it is not alive.
        ConfigError: several go by that name.
    """
    nodes = list(present())
    found = [node for node in nodes if node.name == name]
    if not found:
        names = ", ".join(sorted({node.name for node in nodes}))
        raise UnavailableError(f"node '{name}' is not alive; start it again. Alive: {names}")
    if len(found) > 1:
        raise _ambiguous(found)
    return found[0]


def selector(name: str) -> dict[str, str]:
    """Label selector of replicas that must run on a node; Serve takes no scheduling strategy.

    It outlasts restarts of a node with a label, alive now or not, but of no other.
    """
    bare = any(node.name == name and not node.labelled for node in present())
    return {"ray.io/node-id": find(name).id} if bare else {LABEL: name}


def here() -> str:
    """Name of the node that this task, actor or driver runs on."""
    labels = ray.get_runtime_context().get_node_labels()
    return _name(labels, socket.gethostname())


def own_address() -> str:
    """IP address under which other nodes reach this one."""
    return str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]


def local_root(root: Path) -> Path:
    """Folder of what this node itself holds of the index at `root`, an absolute path.

    The same path on the disk of this node, or a folder of its own below CLIPRAY_NODE_ROOT, in
    the environment that Ray was started with here.
    """
    given = os.environ.get(ROOT_VARIABLE)
    digest = hashlib.sha256(str(root).encode()).hexdigest()[:8]
    return Path(given) / f"{root.name}-{digest}" if given else root


def _perform(function: Callable[[Argument], Result], argument: Argument) -> tuple[str, Result]:
    return here(), function(argument)


def _cancel(running: list[Any]) -> None:
    """Cancel tasks, the last first, so that none moves up meanwhile.

    Ray 2.60 ends this whole process where a task finishes in the very moment it is cancelled, so
    the short ones are left to finish.
    """
    if running and ray.is_initialized():
        _, left = ray.wait(running, num_returns=len(running), timeout=ENDING_S)
        for reference in reversed(left):
            ray.cancel(reference)


def _strategy(call: Call[Any], needs: Needs) -> NodeAffinitySchedulingStrategy | str:
    if call.on is not None:
        node = find(call.on)
        _require_room(node, needs)
        return NodeAffinitySchedulingStrategy(node.id, soft=False)
    if call.near is not None:
        found = (node for node in present() if node.name == call.near)
        if near := next(found, None):
            return NodeAffinitySchedulingStrategy(near.id, soft=True)
    return "SPREAD"


def _require_room(node: Node, needs: Needs) -> None:
    if node.cpus < needs.cpus or node.gpus < needs.gpus:
        raise UnavailableError(
            f"node '{node.name}' has {node.cpus:g} CPUs and {node.gpus:g} GPUs; "
            f"a task that must run there needs {needs.cpus:g} and {needs.gpus:g}"
        )


def _outcome(reference: Any, call: Call[Any], needs: Needs) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:  # what the function raised
        raise plain(error) from error
    except ray.exceptions.RayError as error:  # what happened to its process or node
        raise _lost(error, call, needs) from error


def _lost(error: ray.exceptions.RayError, call: Call[Any], needs: Needs) -> ClipRayError:
    gone = (ray.exceptions.NodeDiedError, ray.exceptions.TaskUnschedulableError)
    if call.on is not None and isinstance(error, gone):
        return UnavailableError(
            f"node '{call.on}' died, and with it a task that must run there; start it again"
        )
    told = str(error).strip().splitlines()[0]
    return UnavailableError(f"a task was lost {needs.retries + 1} times, lastly: {told}")


def _name(labels: Mapping[str, Any], hostname: str) -> str:
    return str(labels.get(LABEL) or hostname)


def _ambiguous(nodes: Sequence[Node]) -> ConfigError:
    # An address or a port would tell them apart, but not after a restart.
    addresses = ", ".join(node.address for node in nodes)
    return ConfigError(
        f"{len(nodes)} nodes are called '{nodes[0].name}' ({addresses}); start each with a name "
        f"of its own, ray start --labels {LABEL}=NAME, or wait until Ray has noticed that one died"
    )
