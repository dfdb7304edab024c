"""Holes grow before they are filled, and their borders are soft when known pixels are put back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.tensors import fold_time, unfold_time


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Grow a ``b t 1 H W`` mask by ``radius`` pixels (a square)."""
    if radius <= 0 or not bool(mask.any()):
        return mask
    side = 2 * radius + 1
    # Columns, then rows: the same square, at the cost of its sides and not of its area.
    down = F.max_pool2d(fold_time(mask), (side, 1), stride=1, padding=(radius, 0))  # (b t) 1 H W
    return unfold_time(F.max_pool2d(down, (1, side), stride=1, padding=(0, radius)), mask.shape[1])


def feather(mask: Tensor, width: int) -> Tensor:
    """Soft outer border: 1 on the mask, falling to 0 over ``width`` pixels around it, exactly 0 beyond.

    ``b t 1 H W`` in {0, 1} -> ``b t 1 H W`` in [0, 1].
    """
    if width <= 0:
        return mask
    grown = fold_time(dilate(mask, (width + 1) // 2))  # (b t) 1 H W
    side = 2 * (width // 2) + 1
    padded = F.pad(grown, (side // 2,) * 4, mode="replicate")
    soft = unfold_time(F.avg_pool2d(padded, side, stride=1), mask.shape[1])
    return torch.maximum(soft, mask)


def put_back(output: Tensor, known_pixels: Tensor, hole: Tensor, width: int) -> Tensor:
    """Known pixels outside the feathered hole, ``output`` inside, a blend across ``width`` pixels between."""
    return torch.lerp(known_pixels, output, feather(hole, width))
