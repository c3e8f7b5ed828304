"""Which shard is built where: embedding parts stay on the nodes whose disks hold them.

Where every node sees all parts, as on one machine or with a shared folder, any node may build any
shard. Otherwise the shards are dealt out to the nodes by the rows that they hold.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from clipray.embeddings import Parts
from clipray.errors import ConfigError, InputError
from clipray.index.builder import PartSlice, assign_rows
from clipray.index.workers import Workers
from clipray.manifest import Modality

Node = str | None  # None: any


@dataclass(frozen=True)
class Placed:
    """The parts of all nodes, and which node holds each; None where that does not matter."""

    parts: Parts
    home: Mapping[int, Node]

    def rows(self) -> dict[Node, dict[int, int]]:
        """By node, the rows of each of its parts."""
        rows: dict[Node, dict[int, int]] = {}
        for number in self.parts:
            rows.setdefault(self.home[number], {})[number] = self.parts.parts[number].rows
        return rows

    def shards(self, count: int) -> list[tuple[Node, list[PartSlice]]]:
        """The rows of each shard, and where it must be built.

        Raises:
            ConfigError: fewer rows, or more nodes with rows, than shards.
        """
        rows = self.rows()
        totals = {node: sum(own.values()) for node, own in rows.items()}
        return [
            (node, slices)
            for node, own in _dealt(totals, count).items()
            for slices in assign_rows(rows[node], own)
        ]


def place(parts: Parts, workers: Workers) -> Placed:
    """Ask all nodes which parts they see."""
    seen = workers.everywhere(seen_parts, (parts.root, parts.modality))
    numbers = {node: set(found.parts) for node, found in seen.items() if found}
    everywhere = set(parts.parts).union(*numbers.values())
    if len(numbers) == len(seen) and all(found == everywhere for found in numbers.values()):
        return Placed(parts, dict.fromkeys(parts, None))
    everything = dict(parts.parts)
    home: dict[int, Node] = {}
    held = dict.fromkeys(numbers, 0)
    for number in sorted(everywhere):
        node = min((node for node in numbers if number in numbers[node]), key=held.__getitem__)
        part = seen[node].parts[number]
        home[number], everything[number] = node, part
        held[node] += part.rows
    return Placed(replace(parts, parts=everything), home)


def seen_parts(root: Path, embeddings: Path, modality: Modality) -> Parts | None:
    """The parts that this node sees, if any; `root`, of the index, is not read."""
    del root
    try:
        return Parts.open(embeddings, modality)
    except InputError:
        return None


def _dealt(rows: Mapping[Node, int], shards: int) -> dict[Node, int]:
    """How many shards each node builds: one at least, the others by rows."""
    if shards < len(rows):
        raise ConfigError(
            f"shards: {shards} asked for, but the embeddings lie on the disks of {len(rows)} nodes "
            f"({', '.join(sorted(map(str, rows)))}); use at least as many"
        )
    dealt = dict.fromkeys(rows, 1)
    for _ in range(shards - len(rows)):
        dealt[max(rows, key=lambda node: rows[node] / dealt[node])] += 1
    return dealt
