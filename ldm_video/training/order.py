"""The order in which processes take clips over a whole run, across restarts; and the joint batch of all processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler


def clip_numbers(first: int, count: int) -> range:
    """Return the positions in the run's stream of ``count`` clips of this process, starting with its ``first``-th."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return range(first * world + rank, (first + count) * world, world)


def joint(x: Tensor) -> Tensor:
    """Gather ``b ...`` from all processes into ``(world b) ...``, without gradients. A collective call."""
    if not dist.is_initialized():
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


class ClipOrder(Sampler[int]):
    """Sample an endless, seeded stream: process ``rank`` of ``world`` takes the items ``rank, rank + world, ...``.

    A run is a single pass without epochs, so that a position is one number and a resumed run continues exactly.

    Args:
        length: number of items that one process takes in the whole run.
        done: number of items that it took before a restart.
    """

    def __init__(self, length: int, done: int = 0) -> None:
        self.length = length
        self.done = done

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        return iter(clip_numbers(self.done, self.length - self.done))
