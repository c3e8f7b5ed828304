"""Work that the ranks of a run share, with one outcome on 1 or N ranks.

Item i falls to rank i % world, and the results come back in the order of the items. So what is
made of them does not depend on how many ranks there are. What the work is, is not known here.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from clipray.errors import ClipRayError
from clipray.training.peers import Peers

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

Work = Callable[[Sequence[ItemT]], Iterable[ResultT]]


def share_out(items: Sequence[ItemT], work: "Work[ItemT, ResultT]", peers: Peers) -> list[ResultT]:
    """Let every rank do its share; called by all.

    Args:
        items: the same on all ranks.
        work: makes one result an item, in order; it gets all items of this rank at once, so that
            it can read ahead.
        peers: the ranks.

    Returns:
        the results of all items, on all ranks.

    Raises:
        ClipRayError: the first that a rank came with, on all ranks.
    """
    mine = items[peers.rank :: peers.world]
    shares = peers.gather(together(lambda: list(work(mine)), peers))
    return [shares[number % peers.world][number // peers.world] for number in range(len(items))]


def from_first(make: Callable[[], ResultT], peers: Peers) -> ResultT:
    """What the first rank makes, on all ranks; called by all.

    Raises:
        ClipRayError: the one that the first rank met, on all ranks.
    """
    return peers.share(together(lambda: make() if peers.first else None, peers))


def together(make: Callable[[], ResultT], peers: Peers) -> ResultT:
    """What this rank makes, if all ranks can; called by all.

    Raises:
        ClipRayError: the first that a rank met, on all ranks.
    """
    try:
        made = make()
    except ClipRayError as error:
        peers.agree(error)
        raise
    peers.agree(None)
    return made
