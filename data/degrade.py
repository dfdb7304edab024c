"""High-res clip -> low-res clip: presets, and one function that applies any of them.

A degradation is a pure function of (clip, scale, configuration, generator). The chains are in ``data/degradation/``.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from data.degradation.codec import codec_round_trip
from data.degradation.filters import exact_scale
from data.degradation.first_order import DegradeConfig, degrade_once, degrade_pixels
from data.degradation.second_order import SecondOrderConfig, degrade_twice

__all__ = [
    "PRESETS",
    "Degradation",
    "DegradeConfig",
    "SecondOrderConfig",
    "codec_round_trip",
    "degrade",
    "degrade_pixels",
    "exact_scale",
]

Degradation = DegradeConfig | SecondOrderConfig

_KERNELS = ("bicubic", "area", "bilinear")
PRESETS: dict[str, Degradation] = {
    "clean": DegradeConfig(),
    "sd": DegradeConfig((0.6, 1.6), (0.0, 6.0), (16, 26), _KERNELS, ("h264", "h264", "h264_live")),
    "sd_fixed": DegradeConfig((1.2, 1.2), (3.0, 3.0), (20, 20)),
    "broadcast": DegradeConfig((0.6, 1.6), (0.0, 6.0), (20, 36), _KERNELS, ("mpeg2video",), interlaced=True),
    "wild": SecondOrderConfig(),
}


def degrade(clip: Tensor, scale: float, config: Degradation, rng: np.random.Generator) -> Tensor:
    """Make the low-res version of a clip.

    Args:
        clip: ``t c h w`` float32 in [-1, 1].
        scale: 1 or more, integer or not; ``h`` and ``w`` divided by it must be integers, see :func:`exact_scale`.

    Returns ``t c h/scale w/scale`` float32 in [-1, 1], quantised to 256 levels, aligned with ``clip`` in time and
    space: a point at (y, x), measured from the picture's corner, moves to (y, x) / scale.
    Raises ``ValueError`` for a size that is not divisible.
    """
    if isinstance(config, SecondOrderConfig):
        return degrade_twice(clip, scale, config, rng)
    return degrade_once(clip, scale, config, rng)
