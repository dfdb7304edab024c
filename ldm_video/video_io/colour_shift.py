"""Shift colour relative to luma by a fraction of a pixel.

Where chroma is stored at half resolution, half a pixel decides which side of an edge a colour is on. A model learns to
undo a shift that all its training clips had; it must then be shown other clips with the same shift.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.video_io.colour import LUMA_WEIGHTS

_LOBES = 3  # of the Lanczos kernel


def shift_colour(frames: Tensor, pixels: float) -> Tensor:
    """Shift the colour of frames ``... 3 h w`` in [-1, 1] to the right by ``pixels``, -1 to 1; luma (BT.601) stays.

    The outermost colour is replicated beyond the sides. At 0 the frames are returned unchanged. Raises ``ValueError``
    for a shift of more than a pixel.
    """
    if not -1 <= pixels <= 1:
        raise ValueError(f"colour is moved by a pixel at most, not {pixels}")
    if pixels == 0:
        return frames
    kr, kb = LUMA_WEIGHTS["bt601"]
    red, green, blue = frames.unbind(-3)
    luma = (kr * red + (1 - kr - kb) * green + kb * blue).unsqueeze(-3)  # ... 1 h w
    colour = frames - luma  # ... 3 h w
    taps = torch.arange(-_LOBES, _LOBES + 1, dtype=torch.float64) + pixels
    weights = torch.where(taps.abs() < _LOBES, torch.sinc(taps) * torch.sinc(taps / _LOBES), 0)
    rows = F.pad(colour.flatten(0, -2)[:, None], (_LOBES, _LOBES), mode="replicate")  # (... 3 h) 1 w+
    moved = F.conv1d(rows, (weights / weights.sum()).to(frames).view(1, 1, -1))[:, 0].view_as(colour)
    return (luma + moved).clamp(-1, 1)
