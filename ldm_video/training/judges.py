"""Several perceptual networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Judges(nn.Module):
    """The mean of several networks' distances; all but the first see every other frame, because they may cost more.

    Neighbouring clips are seen on alternating frames, so that no frame is hidden from a network for ever.

    What one network does not see another one does: trained on LPIPS of AlexNet alone, pictures get fringes and jagged
    lines that VGG16 minds.

    Args:
        networks: each ``(n 3 h w, n 3 h w) -> n . . .``, such as LPIPS.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, output: Tensor, target: Tensor, frames: int | None = None, start: int = 0) -> Tensor:
        """Frames ``n 3 h w`` twice -> ``n``.

        Args:
            frames: of each of the clips that were folded into ``n``; None for a single clip.
            start: the frame, 0 or 1, that is the first to be seen of the first clip. A single frame is always seen.
        """
        first, *others = self.networks
        distances = [first(output, target).flatten(1).mean(dim=1)]
        chosen = _every_other(len(output), frames or len(output), start)
        stands_for = [min(n // 2, len(chosen) - 1) for n in range(len(output))]  # of two in a row one is seen
        for network in others:
            seen = network(output[chosen], target[chosen]).flatten(1).mean(dim=1)  # about n / 2
            distances.append(seen[stands_for])
        return torch.stack(distances).mean(dim=0)


def _every_other(count: int, frames: int, start: int) -> list[int]:
    """Of ``count`` frames in clips of ``frames`` those that are seen: like the fields of a chessboard."""
    return [n for n in range(count) if (n // frames + n % frames) % 2 == start] or [0]
