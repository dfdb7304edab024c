"""Fill a hole smoothly from its surroundings."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def push_pull(x: Tensor, weight: Tensor) -> Tensor:
    """Fill where ``weight`` is 0 from the surroundings, with a pyramid of averages (Gortler et al. 1996, section 3).

    Args:
        x: ``n c h w``.
        weight: ``n 1 h w`` in {0, 1}; where it is 1 the result equals ``x``.

    Returns:
        ``n c h w``. A frame with no known pixel becomes 0 (mid-grey).
    """
    if bool((weight > 0).all()):
        return x
    if x.shape[-2] == 1 and x.shape[-1] == 1:
        return x * weight
    mass = F.avg_pool2d(weight, 2, ceil_mode=True)  # n 1 h/2 w/2
    mean = F.avg_pool2d(x * weight, 2, ceil_mode=True) / mass.clamp(min=1e-6)  # n c h/2 w/2
    coarse = push_pull(mean, (mass > 0).to(x.dtype))
    smooth = F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)  # n c h w
    return x * weight + smooth * (1 - weight)
