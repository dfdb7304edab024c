"""The benchmark's own degradation. It is frozen, independently of the random degradation used in training.

Tables stay comparable over time only if their inputs do not change; hence nothing here is shared with ``data`` (a test
compares the two).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F


def shrink(
    frame: np.ndarray, scale: int, blur_sigma: float, noise_sigma: float, rng: np.random.Generator
) -> np.ndarray:
    """Apply Gaussian blur, antialiased bicubic downscaling by ``scale``, Gaussian noise and clipping.

    Args:
        frame: ``h w 3`` float32 in [0, 1]; ``h`` and ``w`` are multiples of ``scale``.
        scale: downscaling factor.
        blur_sigma: in pixels of ``frame``, truncated at four sigma, borders mirrored; 0 does not blur.
        noise_sigma: in levels of 0..255.
        rng: source of the noise.

    Returns ``h/scale w/scale 3`` float32 in [0, 1].
    """
    if blur_sigma > 0:
        side = 2 * int(4 * blur_sigma + 0.5) + 1
        frame = cv2.GaussianBlur(frame, (side, side), blur_sigma, borderType=cv2.BORDER_REFLECT_101)
    size = (frame.shape[0] // scale, frame.shape[1] // scale)
    pixels = rearrange(torch.from_numpy(np.ascontiguousarray(frame)), "h w c -> 1 c h w")
    small = F.interpolate(pixels, size=size, mode="bicubic", antialias=True, align_corners=False)
    result = rearrange(small, "1 c h w -> h w c").numpy()
    if noise_sigma > 0:
        result = result + rng.standard_normal(result.shape, dtype=np.float32) * np.float32(noise_sigma / 255)
    return np.clip(result, 0, 1)
