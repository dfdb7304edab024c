"""Clips in other tones: more kinds of light and colour than a small collection of footage has."""

from __future__ import annotations

import numpy as np

from ldm_video.video_io.colour import LUMA_WEIGHTS

_GAMMA = (0.7, 1.4)
_CONTRAST = (0.7, 1.25)
_SATURATION = (0.4, 1.5)


def vary_tones(clip: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``t h w c`` uint8 RGB in new tones, drawn once for all frames: gamma, contrast around mid-grey, saturation."""
    gamma = np.exp(rng.uniform(*np.log(_GAMMA)))
    contrast, saturation = rng.uniform(*_CONTRAST), rng.uniform(*_SATURATION)
    curve = 0.5 + contrast * ((np.arange(256) / 255) ** gamma - 0.5)  # of one channel
    red, blue = LUMA_WEIGHTS["bt601"]
    toned = curve.astype(np.float32)[clip]  # t h w c
    luma = toned @ np.array([red, 1 - red - blue, blue], dtype=np.float32)  # t h w
    coloured = luma[..., None] + np.float32(saturation) * (toned - luma[..., None])
    return (coloured.clip(0, 1) * 255 + 0.5).astype(np.uint8)
