"""Fill what no frame of a segment shows: once, from patches, then propagate the fill along the motion.

Filled independently in every frame, it would flicker more than anything else in the picture. Narrow holes are left to
the model: it was trained on them, and sees more of them at once than a patch does.
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

_NARROW_RADIUS = 5.0  # low-res pixels from a hole's middle to its rim, up to which the model fills it better
_SMEAR_SIDE = 3  # side, in low-res pixels, of the square that resizing and compression mix
_KEY_FRAMES = 3  # key frames of a segment whose fill is propagated; then each frame fills what is left by itself


def close_hole(frames: Tensor, hole: Tensor, shown: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Fill the wide parts of a hole with patches of their surroundings.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hole: ``t 1 H W`` in {0, 1}, on the output's grid.
        shown: ``t0 3 H W`` in [-1, 1], the first ``t0`` frames as already restored: the first one's fill is continued.

    Returns the filled frames ``t 3 h w`` and the narrow parts of the hole, ``t 1 H W``, which are still to be filled.
    """
    size = size_of(frames)
    hidden = lay_on_grid(hole, size)  # t 1 h w
    wide = _wide_parts(hidden)
    if not bool(wide.any()):
        return frames, hole
    narrow = hole * (1 - F.interpolate(wide, size=hole.shape[-2:], mode="nearest-exact"))  # t 1 H W
    if hole.shape[-2:] != frames.shape[-2:]:  # enlarging: the rim may be mixed with what must go
        wide = F.max_pool2d(wide, _SMEAR_SIDE, stride=1, padding=_SMEAR_SIDE // 2)
    left, other = wide.clone(), hidden * (1 - wide)
    if shown is not None and bool(left[0].any()):
        # Downsampled and enlarged again, sharp lines would ring: redraw the fill from this segment's patches.
        frames = _fill(frames, left, other, [0], _downsampled(shown[:1], frames[:1], torch.maximum(left, other)[:1]))
        left[0] = 0
        frames, left = _propagate(frames, left, other)
    for _ in range(_KEY_FRAMES):
        key = _key_frame(left)
        if key is None:
            return frames, narrow
        frames = _fill(frames, left, other, [key])
        left[key] = 0
        frames, left = _propagate(frames, left, other)
    return _fill(frames, left, other, left.flatten(1).any(1).nonzero()[:, 0].tolist()), narrow


def _wide_parts(hidden: Tensor) -> Tensor:
    """Return the parts of a hole ``t 1 h w`` that are wide in some frame.

    A part is a connected component of the union of the hole over all frames.
    """
    masks = hidden[:, 0].byte().cpu().numpy()
    _, parts = cv2.connectedComponents(masks.max(axis=0), connectivity=8)  # h w
    depth = np.zeros(parts.shape, np.float32)
    for mask in masks:
        bordered = np.pad(mask, 1, mode="edge")  # a hole continues outside the frame
        depth = np.maximum(depth, cv2.distanceTransform(bordered, cv2.DIST_L2, cv2.DIST_MASK_5)[1:-1, 1:-1])
    wide = np.isin(parts, np.unique(parts[depth > _NARROW_RADIUS])) & (parts > 0)
    return hidden * torch.from_numpy(wide).to(hidden)


def _key_frame(left: Tensor) -> int | None:
    """Return the middle one of the frames that hide most, as the others are near it; None when nothing is left."""
    area = left.sum(dim=(1, 2, 3))  # t
    most = (area == area.max()).nonzero()[:, 0]
    return int(most[len(most) // 2]) if bool(area.any()) else None


def _downsampled(shown: Tensor, frame: Tensor, hidden: Tensor) -> Tensor:
    """Downsample ``1 3 H W`` to the grid of the low-res ``frame`` ``1 3 h w``.

    Returns ``3 h w``, its colours matched to those around the frame's hole.
    """
    made = resize(shown, size_of(frame)).to(frame)  # 1 3 h w
    return (made + push_pull(frame - made, 1 - hidden))[0]


def _fill(frames: Tensor, left: Tensor, other: Tensor, keys: list[int], start: Tensor | None = None) -> Tensor:
    """Fill ``left`` in the frames ``keys``, starting from ``start`` ``3 h w``; ``other`` is not read either."""
    frames = frames.clone()
    for key in keys:
        filled = complete(frames[key], torch.maximum(left[key], other[key]), start)
        frames[key] = torch.where(left[key].bool(), filled, frames[key])
    return frames


def _propagate(frames: Tensor, left: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Fill ``left`` with what other frames have there by now, and return what is left of it.

    The confidence does not matter as long as it is above 0: no part of an invented fill is truer than another.
    """
    filled, confidence = propagate(frames, torch.maximum(left, other))
    found = left * (confidence > 0)
    return torch.where(found.bool(), filled, frames), left - found
