"""Several perceptual networks as one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Judges(nn.Module):
    """The mean of several networks' distances; all but the first see every other frame, because they may cost more.

    What one network does not see another one does: trained on LPIPS of AlexNet alone, pictures get fringes and jagged
    lines that VGG16 minds.

    Args:
        networks: each ``(n 3 h w, n 3 h w) -> n . . .``, such as LPIPS.
    """

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        """Frames ``n 3 h w`` twice -> ``n``."""
        first, *others = self.networks
        distances = [first(output, target).flatten(1).mean(dim=1)]
        for network in others:
            seen = network(output[::2], target[::2]).flatten(1).mean(dim=1)  # (n + 1) // 2
            distances.append(seen.repeat_interleave(2)[: len(output)])
        return torch.stack(distances).mean(dim=0)
