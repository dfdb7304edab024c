"""A discriminator on the features of a frozen, pretrained network, and a distance of these features.

Small heads on fixed features learn to tell real from generated in a few hundred steps, where a discriminator trained
from scratch needs many thousands (Projected GANs, arXiv:2111.01007). The same features give a perceptual distance
(arXiv:1603.08155), so the network runs only once for both.

Features are not normalised to unit length at every point, as in LPIPS: that would hide from the critic and the distance
how strong an edge or a texture is, and blur would hardly be noticed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization

from ldm_video.core.checks import number, whole

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FeatureCritic(nn.Module):
    """Distance and hinge losses on the features of one random frame of each clip.

    As with :class:`~ldm_video.training.adversary.Adversary`, one backward pass serves both players.

    Args:
        backbone: layers that take ImageNet-normalised RGB, such as VGG16's ``features``; frozen.
        taps: indices of the layers whose output is used, ascending.
        weight: weight of the model's adversarial term.
        distance_weight: weight of the feature distance; 0 leaves it out.
        channels: width of the heads.
        shift: largest random shift in pixels. Pooling samples a grid of fixed phase: without shifts, dots with its
            period pass for texture and spread over grass and leaves.
        conditional: show the critic the input of the generated picture too (as in pix2pix, arXiv:1611.07004). Without
            it, the critic demands texture wherever real pictures may have some; with it, texture that fits the input.

    Raises ``ValueError`` for bad ``taps``.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        backbone: nn.Sequential,
        taps: Sequence[int] = (3, 8, 15, 22),
        weight: float = 0.05,
        distance_weight: float = 1.0,
        channels: int = 64,
        shift: int = 8,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        if list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < len(backbone):
            raise ValueError(f"taps {list(taps)} must rise and be layers of a backbone of {len(backbone)}")
        self.backbone = backbone[: taps[-1] + 1].requires_grad_(False).eval().to(memory_format=torch.channels_last)
        for layer in self.backbone:
            if isinstance(layer, nn.ReLU):
                layer.inplace = False  # it must not overwrite the output of a tap before it
        self.taps, self.shift = tuple(taps), whole("shift", shift, 0)
        self.weight = number("weight", weight, 0, math.inf)
        self.distance_weight = number("distance_weight", distance_weight, 0, math.inf)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)
        widths = self._widths()
        self.conditional = conditional
        self.heads = nn.ModuleList(_head(width * (1 + conditional), channels) for width in widths)

    def forward(
        self, output: Tensor, target: Tensor, generator: torch.Generator, seen: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Clips ``b t 3 H W`` in [-1, 1] -> terms ``features``, ``adversary`` (both weighted) and ``discriminator``.

        ``seen``, of the same shape, is what the output was made from; only a conditional critic uses it. Raises
        ``ValueError`` if such a critic does not get it.
        """
        if self.conditional and seen is None:
            raise ValueError("a conditional critic has to be shown what the output was made from")
        picked = torch.randint(output.shape[1], (len(output),), generator=generator).to(output.device)  # b
        rows = torch.arange(len(output), device=output.device)
        dy, dx = (int(torch.randint(self.shift + 1, (), generator=generator)) for _ in range(2))
        made = self.features(output[rows, picked, :, dy:, dx:])  # taps of b c h w
        with torch.no_grad():
            real = self.features(target[rows, picked, :, dy:, dx:])
            given = None if seen is None or not self.conditional else self.features(seen[rows, picked, :, dy:, dx:])
        scales = [_rms(r) for r in real]  # one number per tap, the same for both
        made, real = ([x / scale for x, scale in zip(taps, scales, strict=True)] for taps in (made, real))
        terms = {}
        if self.distance_weight:
            distances = [F.l1_loss(a, b) for a, b in zip(made, real, strict=True)]
            terms["features"] = self.distance_weight * torch.stack(distances).mean()
        if given is not None:
            beside = [x / scale for x, scale in zip(given, scales, strict=True)]
            made, real = ([torch.cat(p, dim=1) for p in zip(x, beside, strict=True)] for x in (made, real))  # b 2c h w
        verdicts = [_fixed(head, m).mean() for head, m in zip(self.heads, made, strict=True)]
        terms["adversary"] = -self.weight * torch.stack(verdicts).mean()
        own = [
            (F.relu(1 - head(r)).mean() + F.relu(1 + head(m.detach())).mean()) / 2
            for head, r, m in zip(self.heads, real, made, strict=True)
        ]
        terms["discriminator"] = torch.stack(own).mean()
        return terms

    def features(self, frames: Tensor) -> list[Tensor]:
        """Frames ``b 3 H W`` in [-1, 1] -> the features ``b c h w`` of each tap."""
        x = ((frames + 1) / 2 - self.mean) / self.std
        found = []
        for index, layer in enumerate(self.backbone):
            x = layer(x)
            if index in self.taps:
                found.append(x)
        return found

    @torch.no_grad()
    def _widths(self) -> list[int]:
        return [features.shape[1] for features in self.features(torch.zeros(1, 3, 32, 32))]


class SpectralNorm(nn.Module):
    """Divide a weight by its exact largest singular value (arXiv:1802.05957). Stateless, so resuming is exact."""

    def forward(self, weight: Tensor) -> Tensor:
        """Normalise a weight ``o ...``; gradients do not flow through the singular value."""
        matrix = weight.detach().flatten(1).float()  # o (i h w)
        with torch.autocast(weight.device.type, enabled=False):  # eigvalsh has no half precision
            largest = torch.linalg.eigvalsh(matrix @ matrix.T)[-1].clamp(min=1e-12).sqrt()
        return weight / largest.to(weight)


def _head(width: int, channels: int) -> nn.Sequential:
    """Build a head: features ``b width h w`` -> a score of every point's neighbourhood, ``b 1 h w``."""
    layers = nn.Sequential(
        nn.Conv2d(width, channels, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, channels, 3, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(channels, 1, 3, padding=1),
    )
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            register_parametrization(layer, "weight", SpectralNorm())
    return layers


def _rms(features: Tensor) -> Tensor:
    """Return the root mean square over all elements, a scalar; summed in float32."""
    return features.float().square().mean().sqrt().clamp(min=1e-6).to(features)


def _fixed(head: nn.Module, features: Tensor) -> Tensor:
    """Return the head's scores with its weights held constant."""
    return functional_call(head, {name: value.detach() for name, value in head.named_parameters()}, (features,))
