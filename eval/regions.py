"""Regions to score: inside the hole, in a band around it, outside it."""

from __future__ import annotations

import cv2
import numpy as np

BAND = 16
REGIONS = ("inside", "band", "outside")


def regions(mask: np.ndarray, band: int = BAND) -> dict[str, np.ndarray]:
    """Split a frame by its hole.

    Args:
        mask: ``h w``, 1 = hole.
        band: width in pixels of the band, which lies entirely outside the hole.

    Returns bool maps ``h w``: ``inside``, the hole; ``band``, at most ``band`` pixels (Euclidean) away from it, where
    seams and bleeding show; ``outside``, everything that is not hole, the band included.
    """
    hole = mask > 0.5
    if not hole.any():
        return {"inside": hole, "band": np.zeros_like(hole), "outside": ~hole}
    distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return {"inside": hole, "band": ~hole & (distance <= band), "outside": ~hole}
