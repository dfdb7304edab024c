"""A texture that moves: what tests of everything along the motion look at."""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
from torch import Tensor

FRAMES, SIZE, STEP = 5, (48, 64), 3  # pixels that the picture moves from frame to frame


def scene(seed: int = 0, step: int = STEP, enlarged: int = 1) -> Tensor:
    """A texture that moves sideways, ``t 3 h w`` in [-0.8, 0.8]; ``enlarged``: the same on a finer grid."""
    height, width = SIZE[0] * enlarged, SIZE[1] * enlarged
    whole = SIZE[1] + FRAMES * abs(step)
    coarse = np.random.default_rng(seed).random((SIZE[0] // 4, whole // 4, 3)).astype(np.float32)
    wide = cv2.resize(coarse, (whole * enlarged, height), interpolation=cv2.INTER_CUBIC) * 1.6 - 0.8
    starts = [t * step * enlarged for t in range(FRAMES)]
    return torch.from_numpy(np.stack([wide[:, x : x + width].transpose(2, 0, 1) for x in starts])).clamp(-0.8, 0.8)


def noisy(clip: Tensor, sigma: float = 0.05) -> Tensor:
    return clip + sigma * torch.randn(clip.shape, generator=torch.Generator().manual_seed(1))


def nothing(clip: Tensor) -> Tensor:
    """A hole that hides nothing."""
    return torch.zeros(len(clip), 1, *clip.shape[-2:])


def decibels(a: Tensor, b: Tensor, margin: int = 4, moved: int = 20) -> float:
    """PSNR of what neighbours show as well."""
    inner = (..., slice(margin, -margin), slice(margin, -moved))
    return -10 * math.log10((a[inner] - b[inner]).square().mean().item() / 4)
