"""Low-res consistency: does the downscaled output match the input?"""

from __future__ import annotations

import cv2
import numpy as np
from torch.nn import functional as F

from eval.metrics.fidelity import psnr
from eval.metrics.perceptual import to_batch

_BICUBIC_RADIUS = 2  # low-res pixels to each side in the support of torch's antialiased bicubic kernel


def bring_down(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Downscale ``h w c`` in [0, 1] to ``size`` (height, width), antialiased bicubic, clipped to [0, 1]."""
    small = F.interpolate(to_batch(frame), size=size, mode="bicubic", antialias=True, align_corners=False)
    return small[0].clamp(0, 1).permute(1, 2, 0).numpy()  # c h w -> h w c


def lowres_consistency(pred: np.ndarray, lowres: np.ndarray, mask: np.ndarray | None = None) -> float:
    """Return the PSNR (RGB, dB) between the low-res input and the downscaled output, outside the hole.

    Args:
        pred: ``H W c`` in [0, 1].
        lowres: ``h w c`` in [0, 1], the method's input.
        mask: ``H W``, 1 = hole. Low-res pixels whose kernel reaches into the hole are not counted.

    Degradation of the input limits it: even the reference scores only up to the noise of the degradation. Report the
    reference's score next to it.
    """
    size = lowres.shape[:2]
    region = None
    if mask is not None:
        touched = cv2.resize(mask.astype(np.float32), (size[1], size[0]), interpolation=cv2.INTER_AREA) > 0
        side = 2 * _BICUBIC_RADIUS + 1
        region = cv2.dilate(touched.astype(np.uint8), np.ones((side, side), np.uint8)) == 0
    return psnr(bring_down(pred, size), lowres, region)
