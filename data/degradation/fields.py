"""A clip at the field rate of an interlaced camera: two pictures per frame."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm_video.core.tensors import to_bytes


def field_moments(clip: Tensor) -> Tensor:
    """Interpolate a clip to field rate: each frame, followed by the picture halfway to the next frame.

    The halfway pictures are frames warped by half of the optical flow (Farneback, because OpenCV's DIS depends on the
    number of threads). The motion is extrapolated after the last frame; a single frame is static.

    Args:
        clip: ``t c h w`` float32 in [-1, 1].

    Returns ``(2 t) c h w`` in [-1, 1]; those at even indices are the frames of ``clip``.
    """
    pixels = rearrange(to_bytes(clip), "t c h w -> t h w c").numpy()
    greys = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in pixels]
    flow = np.zeros((*greys[0].shape, 2), np.float32)
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    late = []
    for index, frame in enumerate(frames):
        if index + 1 < len(frames):
            flow = cv2.calcOpticalFlowFarneback(greys[index], greys[index + 1], None, 0.5, 3, 15, 3, 5, 1.2, 0)
        late.append(_move(frame, flow / 2))
    moved = rearrange(torch.from_numpy(np.stack(late)), "t h w c -> t c h w").clamp(-1, 1)
    return rearrange([clip, moved], "two t c h w -> (t two) c h w")


def _move(frame: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Warp a frame by a smooth flow (``h w 2``, x y): what was at x moves to x + flow."""
    y, x = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
    source = np.stack([x, y], -1) - flow
    return cv2.remap(frame, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
