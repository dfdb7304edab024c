"""Which clips a process takes, from the first batch of a run to its last, across restarts; and its joint batch."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler


def clip_numbers(first: int, count: int) -> range:
    """The numbers in the run's stream of ``count`` clips that this process takes, from its ``first``-th on."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    return range(first * world + rank, (first + count) * world, world)


def joint(x: Tensor) -> Tensor:
    """``b ...`` -> the same of all processes' clips, without gradients; every process must call it."""
    if not dist.is_initialized():
        return x.detach()
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    return torch.cat(parts)


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
        return iter(clip_numbers(self.done, self.length - self.done))
