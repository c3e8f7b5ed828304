"""The ranks of a run, as one of them sees the others.

What the ranks have to agree on goes over the CPU, in a group of its own where the gradients go over
NCCL: asking costs no wait for the GPU. Models and data are not known here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import torch
import torch.distributed as dist

from clipray.errors import ClipRayError

CPU = torch.device("cpu")

ValueT = TypeVar("ValueT")


@dataclass(frozen=True)
class Peers:
    """One rank of `world`.

    Attributes:
        device: where this rank computes.
        group: for numbers and objects on the CPU, None alone.
        node: name of its node, told with its errors; None on the node of who started the run.
    """

    rank: int = 0
    world: int = 1
    device: torch.device = CPU
    group: Any = None
    node: str | None = None

    @classmethod
    def join(cls, device: torch.device, node: str | None = None) -> Self:
        """The peers of the process group that stands, or this process alone; called by all."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(device=device, node=node)
        on_cpu = dist.get_backend() == "gloo"
        group = dist.group.WORLD if on_cpu else dist.new_group(backend="gloo")
        return cls(dist.get_rank(), dist.get_world_size(), device, group, node)

    @property
    def first(self) -> bool:
        """Whether this rank is the one that writes."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Sums over all ranks, in double precision."""
        if self.world == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.group)
        return total.tolist()

    def gather(self, value: ValueT) -> list[ValueT]:
        """The values of all ranks, in their order."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value, group=self.group)
        return values

    def share(self, value: ValueT | None) -> ValueT:
        """What the first rank gives, on all ranks."""
        held: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(held, src=0, group=self.group)
        given: ValueT = held[0]
        return given

    def agree(self, error: ClipRayError | None) -> None:
        """Go on together, or fail together: a rank that fails alone lets the others wait.

        Raises:
            ClipRayError: the first that a rank came with, on all ranks.
        """
        for told in self.gather(self._placed(error)):
            if told is not None:
                raise told

    def _placed(self, error: ClipRayError | None) -> ClipRayError | None:
        """With the name of this node: files are read on the nodes' own disks."""
        if error is None or self.node is None:
            return error
        return type(error)(f"{error} [on node '{self.node}']")
