"""The benchmark's own degradation and hole: fixed for good, whatever training's random ones become.

A table can be compared with last year's only if its inputs did not move; hence nothing here is shared with ``data``
(a test holds the degradation against it).
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from einops import rearrange
from torch.nn import functional as F

_OUTLINE_POINTS = 128
_SUBPIXEL_BITS = 8  # of OpenCV's polygon filler


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


def moving_blob(rng: np.random.Generator, frames: int, size: tuple[int, int], area: float) -> np.ndarray:
    """``t h w`` uint8 in {0, 1}: one smooth blob of ``area`` (share of the frame) that drifts and bounces inside."""
    angle = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    waves = [rng.uniform(0, 0.3 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    outline = (1 + np.sum(waves, axis=0))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # n 2, x y
    outline *= np.sqrt(area * size[0] * size[1] / _polygon_area(outline))
    reach = np.abs(outline).max(axis=0)
    room = np.maximum(np.array([size[1], size[0]]) - 2 * reach, 0)
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.005, 0.015) * min(size)
    start = rng.uniform(0, 1, 2) * room
    mask = np.zeros((frames, *size), np.uint8)
    for index in range(frames):
        travelled = start + index * speed * np.array([np.cos(heading), np.sin(heading)])
        points = outline + reach + _bounce(travelled, room)
        fixed = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
        cv2.fillPoly(mask[index], [fixed], 1, shift=_SUBPIXEL_BITS)
    return mask


def _bounce(position: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Fold a straight path into [0, room]."""
    folded = np.mod(position, np.maximum(2 * room, 1e-9))
    return np.where(folded > room, 2 * room - folded, folded)


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
