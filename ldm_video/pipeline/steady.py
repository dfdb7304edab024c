"""Less flicker: what neighbours make of the same spot is brought together along the motion.

A model that draws each spot anew in every frame draws it a little differently. Blending whole frames along the motion
(Lai et al. 2018, arXiv:1808.00449, measure how well that would do) costs the finest detail, which optical flow never
meets exactly; what is coarser flickers more visibly and survives. So the blend is taken at half the output's size, and
only what it changes smoothly is added.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_video.core.motion_average import Neighbour, as_images, can_align, find_neighbours
from ldm_video.core.warp import at, positions

_SMOOTH = 1.0  # standard deviation, in pixels of half size, of what is added


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
    height, width = output.shape[-2:]
    half = as_images(F.interpolate(output.float(), (-(-height // 2), -(-width // 2)), mode="area"))
    changes = [_change(half, t, near) for t, near in enumerate(find_neighbours(guide, hidden, reach))]
    change = rearrange(torch.from_numpy(np.stack(changes)), "t h w c -> t c h w").to(output)
    return output + F.interpolate(change, (height, width), mode="bilinear", align_corners=False)


def _change(clip: np.ndarray, t: int, neighbours: list[Neighbour]) -> np.ndarray:
    """What the blend adds to frame ``t`` of ``t h w c``: ``h w c``."""
    total, mass = clip[t].copy(), np.ones_like(clip[t][..., 0])  # h w c, h w
    for neighbour in neighbours:
        target, weight = _enlarged(neighbour, mass.shape)
        total += weight[..., None] * at(clip[neighbour.frame], target, cv2.INTER_CUBIC)
        mass += weight
    return cv2.GaussianBlur(total / mass[..., None] - clip[t], (0, 0), _SMOOTH)


def _enlarged(neighbour: Neighbour, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Targets ``h w 2`` and weights ``h w`` on a grid of ``size``."""
    height, width = size
    low_height, low_width = neighbour.weight.shape
    motion = neighbour.target - positions(np.zeros_like(neighbour.target))
    motion = cv2.resize(motion, (width, height)) * np.array([width / low_width, height / low_height], np.float32)
    return positions(motion), cv2.resize(neighbour.weight, (width, height))
