"""Two ranks over gloo: processes that are started once and then given work."""

from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
import torch.distributed as dist

from clipray.training.peers import Peers

WORLD = 2
PATIENCE_S = 120


class TwoRanks:
    """Runs a function of a module on both ranks: `ranks(work, *arguments)` → two results."""

    def __init__(self, folder: Path) -> None:
        self._pools = [
            ProcessPoolExecutor(1, get_context("spawn"), _meet, (folder / "meet", rank))
            for rank in range(WORLD)
        ]

    def __call__(self, work, *arguments):
        futures = [pool.submit(_run, work, *arguments) for pool in self._pools]
        return [future.result(PATIENCE_S) for future in futures]

    def close(self) -> None:
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)


def _meet(file: Path, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"file://{file}", rank=rank, world_size=WORLD)


def _run(work, *arguments):
    return work(Peers.join(torch.device("cpu")), *arguments)
