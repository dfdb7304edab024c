"""Blur kernels and resizing. Every kernel is point-symmetric and every resize keeps centres: nothing here shifts."""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

RESIZE_KERNELS = ("bicubic", "bilinear", "area")
Profile = Literal["gaussian", "generalized", "plateau"]
_LARGEST_DENOMINATOR = 64
_BESSEL_POINTS = 128  # of the trapezoid rule, which converges exponentially on a period; exact here up to x = 60


def exact_scale(scale: float) -> Fraction:
    """The scale as a fraction p/q: a side has a whole low-res size just where it is a multiple of p.

    Raises ``ValueError`` below 1.
    """
    if not scale >= 1:
        raise ValueError(f"scale {scale} would enlarge the clip; use 1 to 4")
    return Fraction(scale).limit_denominator(_LARGEST_DENOMINATOR)


def lowres_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) divided by ``scale``; raises ``ValueError`` where that is not whole."""
    exact = exact_scale(scale)
    if any(side % exact.numerator for side in size):
        raise ValueError(f"a clip of {size[0]}x{size[1]} cannot be made {scale} times smaller; crop it to multiples")
    return size[0] * exact.denominator // exact.numerator, size[1] * exact.denominator // exact.numerator


def resize(clip: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """``t c h w`` to another size; ``bicubic`` and ``bilinear`` are antialiased, ``area`` averages what is covered.

    The corners of the picture (not the centres of the corner pixels) stay where they are: no half-pixel shift.
    """
    if tuple(clip.shape[-2:]) == size:
        return clip
    if kernel != "area":
        return F.interpolate(clip, size=size, mode=kernel, antialias=True, align_corners=False)
    if clip.shape[-2] % size[0] == 0 and clip.shape[-1] % size[1] == 0:
        return F.interpolate(clip, size=size, mode="area")
    # Of a fraction of a pixel OpenCV takes the fraction; torch takes the whole pixel.
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    resized = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames]
    return rearrange(torch.from_numpy(np.stack(resized)), "t h w c -> t c h w")


def gaussian_blur(clip: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of each frame of ``t c h w``, to four sigma, the border mirrored."""
    if sigma <= 0:
        return clip
    side = 2 * int(4 * sigma + 0.5) + 1
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    blurred = [cv2.GaussianBlur(f, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    return rearrange(torch.from_numpy(np.stack(blurred)), "t h w c -> t c h w")


def bell_kernel(
    side: int, sigma: tuple[float, float], angle: float, profile: Profile = "gaussian", beta: float = 1.0
) -> np.ndarray:
    """An elliptic blur kernel ``side side`` (odd) with sum 1 (Real-ESRGAN, Wang et al. 2021, section 3.1).

    With r² the squared distance in units of ``sigma`` along axes turned by ``angle``: exp(-r²/2) for ``gaussian``,
    exp(-r^(2 beta)/2) for ``generalized``, 1/(1 + r^(2 beta)) for ``plateau``.
    """
    y, x = _grid(side)
    along = (np.cos(angle) * x + np.sin(angle) * y) / sigma[0]
    across = (np.cos(angle) * y - np.sin(angle) * x) / sigma[1]
    distance = along**2 + across**2
    if profile == "plateau":
        kernel = 1 / (1 + distance**beta)
    else:
        kernel = np.exp(-(distance ** (beta if profile == "generalized" else 1.0)) / 2)
    return kernel / kernel.sum()


def sinc_kernel(side: int, cutoff: float) -> np.ndarray:
    """A circular low-pass ``side side`` (odd) with sum 1: ringing and overshoot (Real-ESRGAN, equation 6).

    ``cutoff`` in radians a pixel; pi lets everything pass along the axes. cutoff J1(cutoff r) / (2 pi r), where J1 is
    the mean of cos(tau - x sin(tau)) over a period.
    """
    radius = np.hypot(*_grid(side))
    tau = np.arange(_BESSEL_POINTS) * 2 * np.pi / _BESSEL_POINTS
    bessel = np.cos(tau - cutoff * radius[..., None] * np.sin(tau)).mean(-1)
    centre = radius == 0  # where the limit is cutoff^2 / (4 pi)
    kernel = np.where(centre, cutoff**2 / (4 * np.pi), cutoff * bessel / (2 * np.pi * np.where(centre, 1, radius)))
    return kernel / kernel.sum()


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    if side % 2 == 0:
        raise ValueError(f"a kernel of {side} pixels has no centre; use an odd side")
    y, x = np.mgrid[:side, :side] - side // 2
    return y.astype(float), x.astype(float)
