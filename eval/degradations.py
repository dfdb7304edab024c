"""The benchmark's own degradation: fixed for good, whatever training's random one becomes.

A table can be compared with last year's only if its inputs did not move; hence nothing here is shared with ``data``
(a test holds the degradation against it).
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
    """Gaussian blur, antialiased bicubic to 1/``scale``, Gaussian noise, clip.

    Args:
        frame: ``h w 3`` float32 in [0, 1]; ``h`` and ``w`` are multiples of ``scale``.
        blur_sigma: in pixels of ``frame``, cut at four sigma, borders mirrored; 0 does not blur.
        noise_sigma: in levels of 0..255.

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
