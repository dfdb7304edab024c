"""A video patch discriminator with hinge losses (PatchGAN, arXiv:1611.07004; hinge, arXiv:1705.02894)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call


class Adversary(nn.Module):
    """A patch discriminator that returns the losses of both players, for one optimizer and one backward pass.

    The model's term treats the discriminator's weights as constants, and the discriminator's term treats the model's
    output as a constant. The gradients are thus those of two optimizers that step simultaneously, and resuming,
    gradient accumulation and DDP need no special handling.

    Args:
        weight: weight of the model's term, positive.
        channels: width of the first layer, a multiple of 8; doubled at each level.
        levels: number of times height and width are halved, 1 or more.

    Raises ``ValueError`` for arguments out of range.
    """

    def __init__(self, weight: float = 0.05, channels: int = 32, levels: int = 3) -> None:
        super().__init__()
        if weight <= 0 or channels % 8 or levels < 1:
            raise ValueError(
                f"weight must be positive, channels a multiple of 8 and levels 1 or more, not {weight}, {channels}, "
                f"{levels}; leave the adversary out (null) to train without one"
            )
        self.weight = weight
        layers: list[nn.Module] = []
        width = 3
        for level in range(levels):
            wider = channels * 2**level
            layers.append(nn.Conv3d(width, wider, (3, 4, 4), stride=(1, 2, 2), padding=1))
            if level:
                layers.append(nn.GroupNorm(8, wider))
            layers.append(nn.LeakyReLU(0.2))
            width = wider
        self.judge = nn.Sequential(*layers, nn.Conv3d(width, 1, 3, padding=1))

    def forward(
        self,
        output: Tensor,
        target: Tensor,
        generator: torch.Generator | None = None,
        seen: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Clips ``b t 3 H W`` -> ``adversary``, the model's weighted term, and ``discriminator``, the discriminator's.

        ``generator`` and ``seen`` are unused.
        """
        constant = {name: parameter.detach() for name, parameter in self.judge.named_parameters()}
        dtype = next(self.judge.parameters()).dtype
        real, made = (rearrange(x, "b t c h w -> b c t h w").to(dtype) for x in (target, output))
        # Not in bfloat16: on CPUs, oneDNN's weight gradient of a 3-D convolution is then NaN (torch 2.14).
        with torch.autocast(output.device.type, enabled=False):
            fooled = functional_call(self.judge, constant, (made,))
            told_apart = F.relu(1 - self.judge(real)).mean() + F.relu(1 + self.judge(made.detach())).mean()
        return {"adversary": -self.weight * fooled.mean(), "discriminator": told_apart / 2}
