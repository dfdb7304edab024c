"""Which clips a process takes, from the first batch of a run to its last, across restarts."""

from __future__ import annotations

from collections.abc import Iterator

import torch.distributed as dist
from torch.utils.data import Sampler


class ClipOrder(Sampler[int]):
    """Items of an endless, seeded stream: process ``rank`` of ``world`` takes ``rank, rank + world, ...``.

    A run is one pass, without epochs, so that a position is one number and a resumed run goes on where it stopped.

    Args:
        length: items that one process takes in the whole run.
        done: items that it has taken before a restart.
    """

    def __init__(self, length: int, done: int = 0) -> None:
        self.length = length
        self.done = done

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return iter(range(self.done * world + rank, self.length * world, world))
