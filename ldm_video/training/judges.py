"""Several perceptual networks combined into one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Judges(nn.Module):
    """The mean distance of several networks; all but the first see every other frame, because they may cost more.

    Consecutive clips of a batch alternate between odd and even frames, so that every network sees all frames over time.

    Networks complement each other: trained with AlexNet's LPIPS alone, a model produces fringes and jagged lines, which
    VGG16 penalises.

    Args:
        networks: each ``(n 3 h w, n 3 h w) -> n . . .``, such as LPIPS.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, output: Tensor, target: Tensor, frames: int | None = None, start: int = 0) -> Tensor:
        """Return the distance per frame, ``n``, of frames ``n 3 h w``.

        Args:
            output, target: ``n 3 h w`` in the range that the networks take.
            frames: number of frames of each clip folded into ``n``; None for a single clip.
            start: first frame of the first clip, 0 or 1, that the other networks see. A single frame is always seen.
        """
        first, *others = self.networks
        distances = [first(output, target).flatten(1).mean(dim=1)]
        chosen = _every_other(len(output), frames or len(output), start)
        stands_for = [min(n // 2, len(chosen) - 1) for n in range(len(output))]  # one of each two is seen
        for network in others:
            seen = network(output[chosen], target[chosen]).flatten(1).mean(dim=1)  # about n / 2
            distances.append(seen[stands_for])
        return torch.stack(distances).mean(dim=0)


def _every_other(count: int, frames: int, start: int) -> list[int]:
    """Return which of ``count`` frames, in clips of ``frames`` each, are seen: a checkerboard over clips and frames."""
    return [n for n in range(count) if (n // frames + n % frames) % 2 == start] or [0]
