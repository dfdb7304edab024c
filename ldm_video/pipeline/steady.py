"""Deflicker: blend what adjacent frames show of the same spot along the motion.

A model that draws each spot independently in every frame draws it slightly differently. Blending along the motion (Lai
et al. 2018, arXiv:1808.00449, learn it) blurs the finest detail, which optical flow never aligns exactly; coarser
detail flickers more visibly and survives. So only the low frequencies of the change are added.

Averaging the low-res frames instead (:mod:`ldm_video.motion.average`) loses more detail, since it smooths the model's
input. It is for clips so noisy that the model would draw the noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_video.motion.alignment import AlignedClip, can_align
from ldm_video.motion.pictures import grid_of, read_at, smooth

_SMOOTH = 0.32  # standard deviation, in low-res pixels, of the blur of what is added: part of the flow error


def steady(output: Tensor, guide: Tensor, hidden: Tensor, reach: int) -> Tensor:
    """Blend every frame with up to ``reach`` neighbours on each side, where the low-res frames agree.

    Args:
        output: ``t 3 H W`` in [-1, 1].
        guide: the low-res frames that it was made from, ``t 3 h w`` in [-1, 1], from which motion and agreement are
            estimated.
        hidden: ``t 1 h w`` in {0, 1}; 1 = the guide is unknown there, and nothing is blended.

    Returns ``t 3 H W``. A clip of one frame, or too small for motion search, is returned unchanged.
    """
    if not can_align(guide, reach):
        return output
    clip = AlignedClip(guide, hidden)
    height, width = output.shape[-2:]
    sigma = _SMOOTH * height / guide.shape[-2], _SMOOTH * width / guide.shape[-1]
    grid = grid_of((height, width), output.device)  # 2 H W
    frames = output.float()
    blended = torch.empty_like(output)
    for t, (frame, neighbours) in enumerate(zip(frames, clip.neighbours(reach), strict=True)):
        total, mass = frame.clone(), torch.ones_like(frame[0])  # 3 H W, H W
        for neighbour in neighbours:
            motion, weight = neighbour.on_grid((height, width), output.device)
            total.addcmul_(weight, read_at(frames[neighbour.frame], grid + motion))
            mass += weight
        blended[t] = frame + smooth(total / mass - frame, sigma)
    return blended
