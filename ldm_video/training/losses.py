"""Pixel losses. The perceptual network is injected: training imports no metric."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError
from ldm_video.core.tensors import fold_time
from ldm_video.training.adversary import Adversary
from ldm_video.training.critic import FeatureCritic
from ldm_video.training.judges import Judges
from ldm_video.video_io.colour import LUMA_WEIGHTS

# Period and cells of a window: the decoder's f4 grid; and twice that, where every other cell differs (dots on a
# diagonal). What repeats every 2 pixels repeats every 4.
_LATTICES = ((4, 8), (8, 4))
_CORNER = 96  # pixels to a side


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of clips ``b t 3 H W`` in [-1, 1]: one for each clip, then their mean."""
    mse = ((output - target) / 2).square().mean(dim=(1, 2, 3, 4))
    return (-10 * mse.log10()).mean()


def nothing_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Zero, as a function of ``parameters``: DDP waits for a gradient of every parameter at every step."""
    return torch.stack([parameter.float().sum() for parameter in parameters]).sum() * 0.0


def lattice(frames: Tensor, period: int = 4, cells: int = 8) -> Tensor:
    """How strongly frames ``n c H W`` repeat themselves every ``period`` pixels: ``n h w``, in the frames' units.

    In windows of ``cells`` x ``cells`` periods: the standard deviation of what pixels of one phase have in common.
    Texture without a period averages out, dots on a grid do not. A decoder whose f4 grid is given nothing to tell one
    cell of grass from the next draws the same dots in each. Windows hang over no edge: frames are at least that large.
    """
    phases = F.pixel_unshuffle(frames.float(), period)  # n (c p p) H/p W/p
    common = F.avg_pool2d(phases, cells, stride=1).unflatten(1, (-1, period**2))  # n c (p p) h w
    variance = (common - common.mean(dim=2, keepdim=True)).square().mean(dim=(1, 2))  # n h w
    return (variance + 1e-6).sqrt()  # a root has no slope at zero


def colour_difference(frames: Tensor) -> Tensor:
    """``... 3 H W`` -> red and blue less luma (BT.601), ``... 2 H W``: zero where a picture is grey."""
    red, green, blue = frames.unbind(-3)
    kr, kb = LUMA_WEIGHTS["bt601"]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    return torch.stack([red - luma, blue - luma], dim=-3)


class PixelLoss(nn.Module):
    """L1 + perceptual + frame difference (+ colour, + lattice, + adversary), on clips ``b t 3 H W`` in [-1, 1].

    Args:
        perceptual: network ``(n 3 h w, n 3 h w) -> n . . .``, such as LPIPS; None leaves that term out.
        perceptual_weight, motion_weight: weights beside L1's 1. ``motion`` is the L1 distance of frame differences:
            flicker that L1 alone would not punish more than noise.
        colour_weight: of the L1 distance of :func:`colour_difference`. Perceptual networks and critics hardly see fine
            colour, nor does the eye: without this term, sharpened lines get fringes. 0 leaves it out.
        lattice_weight: of the :func:`lattice` of the output that goes beyond the target's; 0 leaves it out.
        shift: the largest random shift in pixels before the perceptual network. AlexNet's first layer has stride 4;
            at a fixed phase it lets a checkerboard of that period through, at a random one it does not.
        adversary: a discriminator that is trained beside the model, ``(output, target, generator) -> terms``;
            None leaves it out.

    Raises ``UserError`` for a weight or shift that is none.
    """

    def __init__(
        self,
        perceptual: nn.Module | None,
        perceptual_weight: float = 0.3,
        motion_weight: float = 0.5,
        shift: int = 8,
        adversary: Adversary | FeatureCritic | None = None,
        lattice_weight: float = 0.0,
        colour_weight: float = 0.0,
    ) -> None:
        super().__init__()
        self.perceptual = perceptual
        if perceptual is not None:
            perceptual.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.perceptual_weight = number("perceptual_weight", perceptual_weight, 0, math.inf)
        self.motion_weight = number("motion_weight", motion_weight, 0, math.inf)
        self.lattice_weight = number("lattice_weight", lattice_weight, 0, math.inf)
        self.colour_weight = number("colour_weight", colour_weight, 0, math.inf)
        self.shift = whole("shift", shift, 0)
        self.adversary = adversary

    @torch.no_grad()
    def check_size(self, size: tuple[int, int]) -> None:
        """Raise ``UserError`` where frames of ``size`` (height, width) are too small for a term, at its largest shift.

        Networks are shown no more than a corner: what is large enough for them stays so.
        """
        height, width = size

        def corner(shift: int) -> Tensor:
            return torch.zeros(1, 3, *(max(0, min(side - shift, _CORNER)) for side in size))

        try:
            if self.lattice_weight:
                for scale in _LATTICES:
                    lattice(torch.zeros(1, 3, height, width), *scale)
            if self.perceptual is not None:
                self.perceptual(corner(self.shift), corner(self.shift))
            if isinstance(self.adversary, FeatureCritic):
                self.adversary.features(corner(self.adversary.shift))
            elif self.adversary is not None:
                self.adversary(corner(0)[None], corner(0)[None])
        except (RuntimeError, ValueError) as error:
            why = str(error).splitlines()[0]
            raise UserError(
                f"clips of {height}x{width} cannot be judged by task.pixel_loss ({why}); give a larger data.size, one "
                f"that is a multiple of {max(period for period, _ in _LATTICES)}"
            ) from error

    def train(self, mode: bool = True) -> PixelLoss:
        """Stay in evaluation mode."""
        return super().train(False)

    def forward(
        self, output: Tensor, target: Tensor, generator: torch.Generator, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Weighted terms, each a scalar; their sum is the loss.

        ``seen``: what the output was made from, a picture of its shape, for a critic that takes it into account.
        """
        terms = {"l1": F.l1_loss(output, target)}
        if self.motion_weight and output.shape[1] > 1:
            terms["motion"] = self.motion_weight * F.l1_loss(output.diff(dim=1), target.diff(dim=1))
        if self.colour_weight:
            distance = F.l1_loss(colour_difference(output), colour_difference(target))
            terms["colour"] = self.colour_weight * distance
        if self.lattice_weight:
            a, b = fold_time(output), fold_time(target)  # (b t) 3 H W
            excess = [F.relu(lattice(a, *scale) - lattice(b, *scale)).mean() for scale in _LATTICES]
            terms["lattice"] = self.lattice_weight * torch.stack(excess).sum()
        if self.perceptual is not None:
            dy, dx = (int(torch.randint(self.shift + 1, (), generator=generator)) for _ in range(2))
            a, b = (fold_time(x)[..., dy:, dx:] for x in (output, target))  # (b t) 3 H-dy W-dx
            options: dict[str, int] = {}
            if isinstance(self.perceptual, Judges):  # in a batch of one clip the other frames have their turn as well
                options = {"frames": output.shape[1], "start": int(torch.randint(2, (), generator=generator))}
            terms["perceptual"] = self.perceptual_weight * self.perceptual(a, b, **options).mean()
        if self.adversary is not None:
            terms |= self.adversary(output, target, generator, seen)
        return terms
