"""Blur kernels and resizing. Kernels are point-symmetric and resizes keep centres, so nothing shifts the picture."""

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
_BESSEL_POINTS = 128  # of the trapezoid rule, which converges exponentially over a period; exact here up to x = 60


def exact_scale(scale: float) -> Fraction:
    """Return the scale as a fraction p/q: a side has an integer low-res size if and only if it is a multiple of p.

    Raises ``ValueError`` for a scale below 1.
    """
    if not scale >= 1:
        raise ValueError(f"scale {scale} would enlarge the clip; use 1 to 4")
    return Fraction(scale).limit_denominator(_LARGEST_DENOMINATOR)


def lowres_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """Return (height, width) divided by ``scale``; raises ``ValueError`` if that is not an integer."""
    exact = exact_scale(scale)
    if any(side % exact.numerator for side in size):
        raise ValueError(f"a clip of {size[0]}x{size[1]} cannot be made {scale} times smaller; crop it to multiples")
    return size[0] * exact.denominator // exact.numerator, size[1] * exact.denominator // exact.numerator


def resize(clip: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """Resize ``t c h w`` to ``size`` (height, width).

    ``bicubic`` and ``bilinear`` are antialiased; ``area`` averages the covered pixels. The corners of the picture (not
    the centres of the corner pixels) stay in place, so there is no half-pixel shift.
    """
    if tuple(clip.shape[-2:]) == size:
        return clip
    if kernel != "area":
        return F.interpolate(clip, size=size, mode=kernel, antialias=True, align_corners=False)
    if clip.shape[-2] % size[0] == 0 and clip.shape[-1] % size[1] == 0:
        return F.interpolate(clip, size=size, mode="area")
    # OpenCV weights a partially covered pixel by its covered fraction; torch counts it in full.
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    resized = [cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA) for frame in frames]
    return rearrange(torch.from_numpy(np.stack(resized)), "t h w c -> t c h w")


def gaussian_blur(clip: Tensor, sigma: float) -> Tensor:
    """Blur each frame of ``t c h w`` with a Gaussian truncated at 4 sigma; borders are mirrored."""
    if sigma <= 0:
        return clip
    side = 2 * int(4 * sigma + 0.5) + 1
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    blurred = [cv2.GaussianBlur(f, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    return rearrange(torch.from_numpy(np.stack(blurred)), "t h w c -> t c h w")


def bell_kernel(
    side: int, sigma: tuple[float, float], angle: float, profile: Profile = "gaussian", beta: float = 1.0
) -> np.ndarray:
    """Return an elliptical blur kernel ``side side`` (odd) with sum 1 (Real-ESRGAN, Wang et al. 2021, section 3.1).

    With r² the squared distance in units of ``sigma`` along axes rotated by ``angle`` (radians), the kernel is
    exp(-r²/2) for ``gaussian``, exp(-r^(2 beta)/2) for ``generalized``, 1/(1 + r^(2 beta)) for ``plateau``.
    Raises ``ValueError`` for an even side.
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
    """Return a circular low-pass kernel ``side side`` (odd) with sum 1: ringing and overshoot.

    The kernel is cutoff J1(cutoff r) / (2 pi r) (Real-ESRGAN, equation 6), where J1(x) is the mean of
    cos(tau - x sin(tau)) over a period. ``cutoff`` is in radians per pixel; pi passes everything along the axes.
    Raises ``ValueError`` for an even side.
    """
    radius = np.hypot(*_grid(side))
    tau = np.arange(_BESSEL_POINTS) * 2 * np.pi / _BESSEL_POINTS
    bessel = np.cos(tau - cutoff * radius[..., None] * np.sin(tau)).mean(-1)
    centre = radius == 0  # the limit there is cutoff^2 / (4 pi)
    kernel = np.where(centre, cutoff**2 / (4 * np.pi), cutoff * bessel / (2 * np.pi * np.where(centre, 1, radius)))
    return kernel / kernel.sum()


def _grid(side: int) -> tuple[np.ndarray, np.ndarray]:
    if side % 2 == 0:
        raise ValueError(f"a kernel of {side} pixels has no centre; use an odd side")
    y, x = np.mgrid[:side, :side] - side // 2
    return y.astype(float), x.astype(float)
