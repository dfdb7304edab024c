"""What no frame of a segment shows is invented once, from patches, and then carried along with the motion.

Invented anew in every frame it would be the most restless thing in the picture. Narrow holes are left to the model: it
was trained on them, and sees more of them at once than a patch does.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ldm_video.core.evidence import lay_on_grid, resize
from ldm_video.core.push_pull import push_pull
from ldm_video.core.tensors import size_of
from ldm_video.pipeline.exemplars import complete
from ldm_video.pipeline.propagation import propagate

_NARROW = 5.0  # low-res pixels from the middle of a hole to its rim up to which the model fills it better
_SMEARED = 3  # side of the square of low-res pixels that resizing and compression mix
_KEYS = 3  # frames of a segment in which something is invented for the others; then each closes what is left by itself


def close_hole(frames: Tensor, hole: Tensor, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Close what is wide of a hole with patches of what surrounds it.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hole: ``t 1 H W`` in {0, 1}, on the output's grid.
        shown: ``t0 3 H W`` in [-1, 1], what the first ``t0`` frames have been made already: it is carried on.

    Returns the frames, filled, and the narrow parts of the hole, ``t 1 H W``.
    """
    size = size_of(frames)
    hidden = lay_on_grid(hole, size)  # t 1 h w
    wide = _wide(hidden)
    if not bool(wide.any()):
        return frames, hole
    narrow = hole * (1 - F.interpolate(wide, size=hole.shape[-2:], mode="nearest-exact"))  # t 1 H W
    if hole.shape[-2:] != frames.shape[-2:]:  # enlarged: the rim may be mixed with what must go
        wide = F.max_pool2d(wide, _SMEARED, stride=1, padding=_SMEARED // 2)
    left, other = wide.clone(), hidden * (1 - wide)
    if shown is not None and bool(left[0].any()):
        # Brought down and enlarged again sharp lines get rings: so it is drawn again, from what this segment shows.
        frames = _invent(frames, left, other, [0], _brought_down(shown[:1], frames[:1], torch.maximum(left, other)[:1]))
        left[0] = 0
        frames, left = _carry(frames, left, other)
    for _ in range(_KEYS):
        key = _key(left)
        if key is None:
            return frames, narrow
        frames = _invent(frames, left, other, [key])
        left[key] = 0
        frames, left = _carry(frames, left, other)
    return _invent(frames, left, other, left.flatten(1).any(1).nonzero()[:, 0].tolist()), narrow


def _wide(hidden: Tensor) -> Tensor:
    """Of a hole ``t 1 h w``, the parts that are wide in some frame. A part is what is connected over all frames."""
    masks = hidden[:, 0].byte().cpu().numpy()
    _, parts = cv2.connectedComponents(masks.max(axis=0), connectivity=8)  # h w
    depth = np.zeros(parts.shape, np.float32)
    for mask in masks:
        bordered = np.pad(mask, 1, mode="edge")  # a hole goes on outside the frame
        depth = np.maximum(depth, cv2.distanceTransform(bordered, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1])
    wide = np.isin(parts, np.unique(parts[depth > _NARROW])) & (parts > 0)
    return hidden * torch.from_numpy(wide).to(hidden)


def _key(left: Tensor) -> int | None:
    """Of the frames that hide most, the one in the middle, to which the others are near; None when nothing is left."""
    area = left.sum(dim=(1, 2, 3))  # t
    most = (area == area.max()).nonzero()[:, 0]
    return int(most[len(most) // 2]) if bool(area.any()) else None


def _brought_down(shown: Tensor, frame: Tensor, hidden: Tensor) -> Tensor:
    """``1 3 H W`` on the grid of the low-res ``frame`` ``1 3 h w``: ``3 h w``, in the colours around its hole."""
    made = resize(shown, size_of(frame)).to(frame)  # 1 3 h w
    return (made + push_pull(frame - made, 1 - hidden))[0]


def _invent(frames: Tensor, left: Tensor, other: Tensor, keys: list[int], start: Tensor | None = None) -> Tensor:
    """Fill ``left`` in some of the frames, from ``start`` ``3 h w`` on; ``other`` is not to be read either."""
    frames = frames.clone()
    for key in keys:
        filled = complete(frames[key], torch.maximum(left[key], other[key]), start)
        frames[key] = torch.where(left[key].bool(), filled, frames[key])
    return frames


def _carry(frames: Tensor, left: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``left`` with what other frames have there by now, and return what is left of it.

    How certain that is does not matter: of what is invented, nothing is truer than the rest.
    """
    filled, confidence = propagate(frames, torch.maximum(left, other))
    found = left * (confidence > 0)
    return torch.where(found.bool(), filled, frames), left - found
