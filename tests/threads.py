"""The ranks of a run as threads of one process."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Barrier

from clipray.training.peers import Peers

PATIENCE_S = 20


@dataclass(frozen=True)
class ThreadPeers(Peers):
    """One rank of `world` threads that meet at a barrier."""

    barrier: Barrier | None = None
    table: dict[int, object] | None = None

    def gather(self, value):
        self.table[self.rank] = value
        self.barrier.wait(PATIENCE_S)
        values = [self.table[rank] for rank in range(self.world)]
        self.barrier.wait(PATIENCE_S)
        return values

    def share(self, value):
        return self.gather(value)[0]


def on_ranks(world, work):
    """What `work(peers)` gives or raises on every rank."""
    barrier, table = Barrier(world), {}
    ranks = [ThreadPeers(rank, world, barrier=barrier, table=table) for rank in range(world)]
    with ThreadPoolExecutor(world) as pool:
        futures = [pool.submit(work, peers) for peers in ranks]
        return [future.exception() or future.result() for future in futures]
