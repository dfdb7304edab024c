"""Average low-res frames with their neighbours along the motion.

Noise and compression artefacts change from frame to frame, the scene does not. A model derives detail from its input:
detail that comes and goes there becomes flicker in the output, at several times the resolution.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm_video.motion.alignment import AlignedClip, can_align

_TOLERATED_NOISE = 2.5 / 127.5  # noise standard deviation up to which averaging costs more detail than it removes noise


class Averaged(NamedTuple):
    """Result of averaging.

    Attributes:
        frames: ``t 3 h w``, with the range, dtype and device of the input.
        noise: in [0, 1): 0 for tolerable noise, approaching 1 the more noise there is; the factor on the neighbours'
            weights.
    """

    frames: Tensor
    noise: float


def average_along_motion(frames: Tensor, hidden: Tensor, reach: int) -> Averaged:
    """Average every frame of a noisy clip with up to ``reach`` neighbours on each side.

    Neighbours have full weight where frames differ by noise alone and less weight the cleaner the clip is. Below the
    noise level at which averaging would cost more detail than it removes noise, frames stay unchanged.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hidden: ``t 1 h w`` in {0, 1}; 1 = neither read nor changed.
        reach: neighbours on each side; 0 changes nothing.

    Pixels with which no neighbour agrees stay unchanged, as do clips of one frame and clips too small for optical flow.
    """
    if not can_align(frames, reach):
        return Averaged(frames, 0.0)
    clip = AlignedClip(frames, hidden)
    noise = 1 - min(1.0, 2 * _TOLERATED_NOISE**2 / (clip.typical + 1e-12))
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
