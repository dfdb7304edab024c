"""The trunk of ESRGAN: residual-in-residual dense blocks (Wang et al. 2018, arXiv:1809.00219, figure 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL_SCALE = 0.2  # of every residual branch, instead of normalisation (section 3.1)
SLOPE = 0.2  # of the leaky ReLU


class DenseBlock(nn.Module):
    """Five 3x3 convolutions, each of which takes the input and all previous outputs.

    All but the last have half as many output channels as the block.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        growth = channels // 2
        widths = [growth] * 4 + [channels]
        self.convs = nn.ModuleList(
            nn.Conv2d(channels + number * growth, width, 3, padding=1) for number, width in enumerate(widths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w -> n c h w``."""
        features = x
        for conv in self.convs[:-1]:
            features = torch.cat([features, F.leaky_relu(conv(features), SLOPE)], dim=1)  # n c+growth.. h w
        return torch.add(x, self.convs[-1](features), alpha=RESIDUAL_SCALE)


class ResidualDenseBlock(nn.Module):
    """Three dense blocks with a skip connection around them (RRDB)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(DenseBlock(channels) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w -> n c h w``."""
        return torch.add(x, self.blocks(x), alpha=RESIDUAL_SCALE)


class DenseTrunk(nn.Module):
    """A first convolution, the blocks, a last convolution, and a skip connection from the first to the last.

    :meth:`enter` and :meth:`forward` are separate, so that more than RGB can be added in between.
    """

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.blocks = nn.Sequential(*(ResidualDenseBlock(channels) for _ in range(blocks)))
        self.last = nn.Conv2d(channels, channels, 3, padding=1)

    def enter(self, rgb: Tensor) -> Tensor:
        """``n 3 h w`` in [-1, 1] -> ``n c h w``."""
        return self.first(rgb)

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w -> n c h w``."""
        return x + self.last(self.blocks(x))
