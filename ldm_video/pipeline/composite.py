"""Dilate holes before they are filled, and feather their borders when known pixels are put back."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.tensors import fold_time, unfold_time


def dilate(mask: Tensor, radius: int) -> Tensor:
    """Dilate a ``b t 1 H W`` mask by ``radius`` pixels (a square)."""
    if radius <= 0 or not bool(mask.any()):
        return mask
    side = 2 * radius + 1
    # Separable: columns, then rows. The cost grows with the square's side, not with its area.
    down = F.max_pool2d(fold_time(mask), (side, 1), stride=1, padding=(radius, 0))  # (b t) 1 H W
    return unfold_time(F.max_pool2d(down, (1, side), stride=1, padding=(0, radius)), mask.shape[1])


def feather(mask: Tensor, width: int) -> Tensor:
    """Soften the outer border: 1 on the mask, falling to 0 over ``width`` pixels around it, exactly 0 beyond.

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
    """Composite known pixels outside the feathered hole and ``output`` inside, blended across ``width`` pixels.

    ``output`` and ``known_pixels``: ``b t 3 H W``; ``hole``: ``b t 1 H W`` in {0, 1}.
    """
    return torch.lerp(known_pixels, output, feather(hole, width))
