"""How many shards, groups and nodes a collection takes, and what limits it."""

from dataclasses import dataclass, replace
from math import ceil

from clipray.capacity import costs
from clipray.capacity.needs import Bytes, Collection, search_ms
from clipray.errors import ConfigError

GB = 10**9
USABLE = 0.8  # of memory and disk: the rest is for new versions and for what comes at once
BUSY = 0.6  # of the CPUs: above it queries wait for each other
SYSTEM = 10**9  # bytes of memory of the operating system and Ray's daemons
PROCESSES = round(
    1e6 * sum(one.value for one in (costs.GROUP_MB, costs.INGRESS_MB, costs.ENCODER_MB))
)
BENCH = Collection(100_000, costs.DIM, 0, "HNSW32", 0.95, 4)  # what was served when measured


@dataclass(frozen=True, slots=True)
class Node:
    """What one node has: memory and disk in bytes, and logical CPUs."""

    memory: int
    disk: int
    cpus: int


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of a service.

    Attributes:
        qps: queries a second.
        texts: share of the queries that are texts not seen before.
        replicas: copies of every group.
        in_memory: whether the vectors are to stay in memory as well.
    """

    qps: float
    texts: float
    replicas: int
    in_memory: bool


@dataclass(frozen=True, slots=True)
class Layout:
    """A collection on nodes.

    Attributes:
        wanted: with its shards.
        groups: processes that share a copy of the index, one a node.
        bytes: of one copy.
        memory: bytes that one copy keeps in memory.
        limit: what asks for so many nodes: memory, disk or CPUs.
        search: CPU cores that all queries take in searching.
        service: likewise in all that lies around it.
        encoder: likewise in encoding texts.
    """

    wanted: Collection
    groups: int
    bytes: Bytes
    memory: float
    limit: str
    search: float
    service: float
    encoder: float

    @property
    def cores(self) -> float:
        """All that the queries take."""
        return self.search + self.service + self.encoder


def lay_out(wanted: Collection, node: Node, load: Load) -> Layout:
    """Give every group a node, and shards in equal numbers.

    Raises:
        ConfigError: nodes with less memory than the system and one group take.
    """
    if _room(node) <= 0:
        raise ConfigError(
            f"node_memory {node.memory / GB:.1f} GB: the system and the processes of a service "
            f"take {(SYSTEM + PROCESSES) / GB:.1f} GB, and {1 - USABLE:.0%} stays free; give "
            "larger nodes"
        )
    laid = _on(wanted, 1, node, load)
    for _ in range(20):
        needed, _ = _nodes(laid, node, load)
        shards = ceil(wanted.shards / needed) * needed
        settled = (needed, shards) == (laid.groups, laid.wanted.shards)
        laid = _on(replace(wanted, shards=shards), needed, node, load)
        if settled:
            break
    return laid


def _on(wanted: Collection, groups: int, node: Node, load: Load) -> Layout:
    taken = Bytes.of(wanted)
    in_memory = load.in_memory or wanted.family == "Flat"
    memory = taken.index + 16 * wanted.rows + (taken.vectors if in_memory else 0)
    seconds = load.qps / 1000  # CPU seconds a second, for each CPU millisecond a query
    laid = Layout(
        wanted=wanted,
        groups=groups,
        bytes=taken,
        memory=memory,
        limit="",
        search=seconds * search_ms(wanted),
        service=seconds * service_ms(groups),
        encoder=seconds * load.texts * costs.TEXT_MS.value,
    )
    return replace(laid, limit=_nodes(laid, node, load)[1])


def _nodes(laid: Layout, node: Node, load: Load) -> tuple[int, str]:
    """Nodes that one copy takes, and why so many."""
    needs = {
        "memory": laid.memory / _room(node),
        "disk": laid.bytes.total / (node.disk * USABLE),
        "CPUs": laid.cores / load.replicas / (node.cpus * BUSY),
    }
    limit = max(needs, key=needs.__getitem__)
    return max(1, ceil(needs[limit])), limit


def _room(node: Node) -> float:
    """Bytes of memory for an index."""
    return node.memory * USABLE - SYSTEM - PROCESSES


def service_ms(groups: int) -> float:
    """CPU milliseconds of a query beside its search, with so many groups."""
    one, four = costs.ONE_GROUP_MS.value, costs.FOUR_GROUPS_MS.value
    each = (four - one) / 3
    return one - search_ms(BENCH) + each * (groups - 1)
