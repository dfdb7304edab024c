"""Low-res frames averaged with their neighbours along the motion.

Noise and compression change from frame to frame, what was filmed does not. A model draws detail after what it is
shown: detail that comes and goes is flicker, on a grid several times as fine.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm_video.motion.alignment import AlignedClip, can_align

_TOLERATED = 2.5 / 127.5  # standard deviation of a noise that is left: up to it averaging took more than it gave


class Averaged(NamedTuple):
    """What became of a clip.

    Attributes:
        frames: ``t 3 h w``, of the range, type and device of those that were given.
        noise: 0 where it is tolerated, towards 1 the more there is: how far neighbours counted.
    """

    frames: Tensor
    noise: float


def average_along_motion(frames: Tensor, hidden: Tensor, reach: int) -> Averaged:
    """Average every frame of a noisy clip with up to ``reach`` neighbours on each side.

    Neighbours count in full where noise is all that they differ by, less where the clip is nearly clean, and not at
    all below a noise that costs less than the detail that averaging takes.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hidden: ``t 1 h w`` in {0, 1}; 1 = not to be read, nor changed.

    Where no neighbour agrees, a pixel stays as it is; so does every frame of a clip of one, and of one too small to
    search for motion.
    """
    if not can_align(frames, reach):
        return Averaged(frames, 0.0)
    clip = AlignedClip(frames, hidden)
    noise = 1 - min(1.0, 2 * _TOLERATED**2 / (clip.usual + 1e-12))
    if noise == 0:
        return Averaged(frames, 0.0)
    averaged = []
    for frame, neighbours in zip(clip.images, clip.neighbours(reach), strict=True):
        total, mass = frame.copy(), np.ones_like(frame[..., 0])  # h w c, h w
        for neighbour in neighbours:
            weight = noise * neighbour.weight
            total += weight[..., None] * neighbour.aligned
            mass += weight
        averaged.append(total / mass[..., None])
    result = rearrange(torch.from_numpy(np.stack(averaged)), "t h w c -> t c h w").clamp(-1, 1)
    return Averaged(result.to(frames.device, frames.dtype).contiguous(), noise)
