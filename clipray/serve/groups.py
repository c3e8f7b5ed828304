"""Which shards each group of replicas holds.

A group is a deployment of its own, because a call to a replica costs more than a search: a query
goes to every group once, however many shards there are. Groups are made once; later versions of
an index, with more shards or fewer, are dealt out to the same ones.
"""

from collections.abc import Sequence

from clipray.config import Config
from clipray.errors import MismatchError
from clipray.serve.catalog import ServedFolder


class GroupSpec(Config):
    """One group among those of the same place.

    Attributes:
        name: of its deployment.
        node: name of the node whose disk holds its shards; None where all nodes see all shards.
        number: of the group among those of its node.
        of: how many those are.
    """

    name: str
    node: str | None = None
    number: int = 0
    of: int = 1

    def shards(self, folder: ServedFolder) -> tuple[int, ...]:
        """Numbers of the shards that this group holds of a folder."""
        local = [n for n, shard in enumerate(folder.shards) if shard.node == self.node]
        return tuple(local[self.number :: self.of])


def plan_groups(folders: Sequence[ServedFolder], groups: int) -> list[GroupSpec]:
    """Groups for the shards of all folders.

    Args:
        folders: what is served.
        groups: for the shards that every node sees, as long as there are that many; shards that
            lie on a node have a group there.
    """
    homes = sorted({shard.node for folder in folders for shard in folder.shards if shard.node})
    most = max(sum(shard.node is None for shard in folder.shards) for folder in folders)
    count = min(groups, most)
    shared = [GroupSpec(name=f"ShardGroup-{n}", number=n, of=count) for n in range(count)]
    pinned = [GroupSpec(name=f"ShardGroup-{home}", node=home) for home in homes]
    return shared + pinned


def require_homes(folder: ServedFolder, specs: Sequence[GroupSpec]) -> None:
    """Refuse a version with shards that no group can hold.

    Raises:
        MismatchError: naming the node.
    """
    served = {number for spec in specs for number in spec.shards(folder)}
    for number, shard in enumerate(folder.shards):
        if number not in served:
            where = f"on the disk of node '{shard.node}'" if shard.node else "in a shared folder"
            raise MismatchError(
                f"{folder.slot} version {folder.version}: shard {number} lies {where}, where the "
                "service has no group; deploy it again"
            )
