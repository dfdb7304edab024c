"""Keep the colours of the evidence: a diffusion model may shift them, a restoration must not."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.push_pull import push_pull
from ldm_video.core.tensors import fold_time, unfold_time

METHODS = ("wavelet", "adain", "none")

_CELL = 32  # side in pixels of the squares whose mean counts as low frequency


def match_colour(output: Tensor, guess: Tensor, hole: Tensor, method: str = "wavelet") -> Tensor:
    """Match the colours of ``output`` to those of the evidence, using statistics from outside the hole only.

    Args:
        output: ``b t 3 H W`` in [-1, 1].
        guess: the evidence resized to the same grid, ``b t 3 H W`` in [-1, 1].
        hole: ``b t 1 H W`` in {0, 1}.
        method: ``wavelet`` gives every frame the evidence's low frequencies (StableSR, arXiv:2305.07015, section 3.3);
            inside the hole the correction at its rim is extrapolated smoothly. ``adain`` matches mean and standard
            deviation of each channel of a frame. ``none`` returns ``output``.

    Returns ``b t 3 H W``, not clamped. Raises ``ValueError`` for an unknown method.
    """
    if method not in METHODS:
        raise ValueError(f"unknown colour fix {method!r}; use one of {', '.join(METHODS)}")
    keep = 1 - hole
    if method == "none" or not bool(keep.any()):
        return output
    return _adain(output, guess, keep) if method == "adain" else output + _low_difference(output, guess, keep)


def _low_difference(output: Tensor, guess: Tensor, keep: Tensor) -> Tensor:
    size = tuple(output.shape[-2:])
    grid = (max(1, round(size[0] / _CELL)), max(1, round(size[1] / _CELL)))
    mass = F.interpolate(fold_time(keep), size=grid, mode="area")  # (b t) 1 g g
    mean = F.interpolate(fold_time((guess - output) * keep), size=grid, mode="area") / mass.clamp(min=1e-6)
    # A cell with little evidence is as unreliable as one with none.
    smooth = push_pull(mean, (mass > 0.05).to(mean))  # (b t) 3 g g
    return unfold_time(F.interpolate(smooth, size=size, mode="bicubic", align_corners=False), output.shape[1])


def _adain(output: Tensor, guess: Tensor, keep: Tensor) -> Tensor:
    mass = keep.sum(dim=(-2, -1), keepdim=True).clamp(min=1)  # b t 1 1 1

    def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
        mean = (x * keep).sum(dim=(-2, -1), keepdim=True) / mass
        variance = ((x - mean).square() * keep).sum(dim=(-2, -1), keepdim=True) / mass
        return mean, torch.sqrt(variance + 1e-8)

    (own_mean, own_std), (mean, std) = statistics(output), statistics(guess)
    return (output - own_mean) / own_std * std + mean
