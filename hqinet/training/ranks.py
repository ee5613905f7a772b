"""The processes that train together: one, or those `torch.distributed` was initialised with."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Ranks:
    """This process among those that train the same network."""

    rank: int
    world: int
    device: torch.device

    @classmethod
    def current(cls, device: torch.device) -> "Ranks":
        """Return the ranks of the initialised process group, or this process alone."""
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size(), device)
        return cls(0, 1, device)

    @property
    def first(self) -> bool:
        """Whether this process writes and reports."""
        return self.rank == 0

    def wrap(self, network: nn.Module) -> nn.Module:
        """Return what to call in training: gradients are then means over ranks."""
        if self.world == 1:
            return network
        return DistributedDataParallel(network, forward_sync_buffers=False)

    def accumulating(self, wrapped: nn.Module) -> AbstractContextManager[None]:
        """Return the context of a backward pass that more will follow before the ranks meet."""
        if isinstance(wrapped, DistributedDataParallel):
            return wrapped.no_sync()
        return nullcontext()

    def gather(self, values: list[float]) -> Tensor:
        """Return the numbers of all ranks, (world, len(values)) float64 on the CPU."""
        mine = torch.tensor(values, dtype=torch.float64)
        if self.world == 1:
            return mine[None]
        mine = mine.to(self.device)
        everyone = [torch.empty_like(mine) for _ in range(self.world)]
        distributed.all_gather(everyone, mine)
        return torch.stack(everyone).cpu()

    def gather_items(self, mine: list[_Item]) -> list[_Item]:
        """Return the items of all ranks, in the order of ranks; they travel pickled."""
        if self.world == 1:
            return mine
        everyone: list[list[_Item]] = [[] for _ in range(self.world)]
        distributed.all_gather_object(everyone, mine)
        return [item for items in everyone for item in items]

    def average_buffers(self, module: nn.Module) -> None:
        """Make the running statistics of all ranks their mean: each has seen its own samples."""
        if self.world == 1:
            return
        for buffer in module.buffers():
            if buffer.is_floating_point():
                distributed.all_reduce(buffer)
                buffer /= self.world
