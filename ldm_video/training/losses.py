"""Pixel losses. The perceptual network is injected, so training does not import metrics."""

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

# Period and window size in periods: the decoder's f4 grid, and twice that, for patterns in which every other cell
# differs (dots on a diagonal). A period of 2 pixels is covered by 4.
_LATTICES = ((4, 8), (8, 4))
_CORNER = 96  # side in pixels


def psnr(output: Tensor, target: Tensor) -> Tensor:
    """Return the PSNR in dB of clips ``b t 3 H W`` in [-1, 1], computed per clip and averaged; a scalar."""
    mse = ((output - target) / 2).square().mean(dim=(1, 2, 3, 4))
    return (-10 * mse.log10()).mean()


def nothing_of(parameters: Iterable[nn.Parameter]) -> Tensor:
    """Return a zero that depends on ``parameters``, because DDP expects a gradient of every parameter at each step."""
    return torch.stack([parameter.float().sum() for parameter in parameters]).sum() * 0.0


def lattice(frames: Tensor, period: int = 4, cells: int = 8) -> Tensor:
    """Measure how strongly frames ``n c H W`` repeat every ``period`` pixels: ``n h w``, in the frames' units.

    In each window of ``cells`` x ``cells`` periods, average the pixels of each phase and take the standard deviation
    over phases. Aperiodic texture averages out; dots on a grid do not. (A decoder that cannot tell one cell of its f4
    grid from the next, say in grass, draws the same dots in each.) Windows are not padded, so frames must be at least
    ``cells * period`` pixels high and wide, and their sides multiples of ``period``.
    """
    phases = F.pixel_unshuffle(frames.float(), period)  # n (c p p) H/p W/p
    common = F.avg_pool2d(phases, cells, stride=1).unflatten(1, (-1, period**2))  # n c (p p) h w
    variance = (common - common.mean(dim=2, keepdim=True)).square().mean(dim=(1, 2))  # n h w
    return (variance + 1e-6).sqrt()  # the square root has no finite slope at zero


def colour_difference(frames: Tensor) -> Tensor:
    """Return red and blue minus luma (BT.601): ``... 3 H W`` -> ``... 2 H W``, zero where a picture is grey."""
    red, green, blue = frames.unbind(-3)
    kr, kb = LUMA_WEIGHTS["bt601"]
    luma = kr * red + (1 - kr - kb) * green + kb * blue
    return torch.stack([red - luma, blue - luma], dim=-3)


class PixelLoss(nn.Module):
    """L1 + perceptual + frame difference (+ colour, + lattice, + adversary), on clips ``b t 3 H W`` in [-1, 1].

    Args:
        perceptual: network ``(n 3 h w, n 3 h w) -> n . . .``, such as LPIPS; None leaves this term out.
        perceptual_weight, motion_weight: weights, relative to 1 for L1. ``motion`` is the L1 distance of frame
            differences; it penalises flicker, which L1 alone penalises no more than noise. 0 leaves ``motion`` out.
        shift: largest random shift in pixels before the perceptual network. AlexNet's first layer has stride 4; at a
            fixed phase it is blind to a checkerboard of that period.
        adversary: a discriminator trained with the model, ``(output, target, generator, seen) -> terms``; None leaves
            it out.
        lattice_weight: weight of the :func:`lattice` of the output in excess of the target's; 0 leaves it out.
        colour_weight: weight of the L1 distance of :func:`colour_difference`. Perceptual networks and critics, like the
            eye, are hardly sensitive to fine colour; without this term, sharpened lines get fringes. 0 leaves it out.

    Raises ``UserError`` for a weight or shift that is negative or not a number.
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
        """Raise ``UserError`` if frames of ``size`` (height, width) do not fit a term, at its largest shift.

        Networks are tested on at most a corner: if it is large enough for them, so is the frame.
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
        """Stay in evaluation mode, whatever ``mode`` is."""
        return super().train(False)

    def forward(
        self, output: Tensor, target: Tensor, generator: torch.Generator, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the weighted terms, each a scalar; their sum is the loss.

        ``seen`` is what the output was made from, of the same shape, for a conditional critic.
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
            if isinstance(self.perceptual, Judges):  # random start: else half of the frames would never be seen
                options = {"frames": output.shape[1], "start": int(torch.randint(2, (), generator=generator))}
            terms["perceptual"] = self.perceptual_weight * self.perceptual(a, b, **options).mean()
        if self.adversary is not None:
            terms |= self.adversary(output, target, generator, seen)
        return terms
