"""Room on the cluster for the workers of a job: what is not there yet is asked for, and said.

Where an autoscaler watches the cluster, asking is what brings nodes; elsewhere it waits for those
that somebody starts.
"""

import logging
import time
from collections.abc import Sequence

from ray.util import placement_group, remove_placement_group
from ray.util.placement_group import PlacementGroup

from clipray import cluster, nodes
from clipray.errors import ConfigError
from clipray.nodes import ONE_CPU, Needs, Node

POLL_S = 5.0

log = logging.getLogger(__name__)


def wait(needs: Needs = ONE_CPU, workers: int = 1) -> None:
    """Return once the nodes together are large enough for so many workers, busy or not.

    Args:
        needs: of each worker.
        workers: that must fit at the same time.

    Raises:
        ConfigError: they do not fit on this machine, which is all there is.
    """
    alive = list(nodes.present())
    if count(alive, needs) >= workers:
        return
    told = f"{workers} × ({_told(needs)}) asked for, the nodes that are alive have {_sum(alive)}"
    if not cluster.is_remote():
        raise ConfigError(f"{told}; ask for less, or set RAY_ADDRESS to a cluster that has them")
    log.warning("waiting for nodes: %s", told)
    began = time.monotonic()
    bundle = {name: size for name, size in (("CPU", needs.cpus), ("GPU", needs.gpus)) if size}
    _hold(placement_group([bundle] * workers))
    log.warning("nodes have come after %.0f s", time.monotonic() - began)


def count(alive: Sequence[Node], needs: Needs) -> int:
    """How many workers fit on nodes that have nothing else to do."""
    return sum(_count(node, needs) for node in alive)


def share(alive: Sequence[Node], gpus: float = 1) -> float:
    """CPUs that every node with GPUs has for a worker with so many of them; 1 where none has any.

    Other nodes may have more, or only CPUs.
    """
    hosts = (node for node in alive if gpus and node.gpus >= gpus)
    return min((node.cpus // node.gpus * gpus for node in hosts), default=1.0)


def _count(node: Node, needs: Needs) -> int:
    has = ((node.cpus, needs.cpus), (node.gpus, needs.gpus))
    return int(min(there // asked for there, asked in has if asked))


def _hold(group: PlacementGroup) -> None:
    """Ask for room until it is there, and leave it to those who need it."""
    try:
        while not group.wait(POLL_S):
            pass
    finally:
        remove_placement_group(group)


def _sum(alive: Sequence[Node]) -> str:
    return _told(Needs(sum(node.cpus for node in alive), sum(node.gpus for node in alive)))


def _told(needs: Needs) -> str:
    return f"CPU {needs.cpus:g}, GPU {needs.gpus:g}"
