"""Less flicker: what neighbours make of the same spot is brought together along the motion.

A model that draws each spot anew in every frame draws it a little differently. Blending along the motion (Lai et al.
2018, arXiv:1808.00449, learn it) costs the finest detail, which optical flow never meets exactly; what is coarser
flickers more visibly and survives. So only what the blend changes smoothly is added.

Averaging the low-res frames instead (:mod:`ldm_video.motion.average`) takes more detail, since it smooths what the
model is shown, before it has drawn anything; it is for clips so noisy that the model draws after their noise.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm_video.motion.alignment import AlignedClip, can_align
from ldm_video.motion.pictures import grid_of, read_at, smooth

_SMOOTH = 0.32  # standard deviation, in low-res pixels, of what is added: some of what flow is astray


def steady(output: Tensor, guide: Tensor, hidden: Tensor, reach: int) -> Tensor:
    """Blend every frame with up to ``reach`` neighbours on each side, where the low-res frames agree.

    Args:
        output: ``t 3 H W`` in [-1, 1].
        guide: the low-res frames that it was made of, ``t 3 h w`` in [-1, 1]: they tell motion and agreement.
        hidden: ``t 1 h w`` in {0, 1}; 1 = the guide says nothing there, and nothing is blended.

    Returns ``t 3 H W``. A clip of one frame, and one too small to search for motion, comes back as it is.
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
