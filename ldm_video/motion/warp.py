"""Warp one picture to another by optical flow."""

from __future__ import annotations

import cv2
import numpy as np


def positions(flow: np.ndarray) -> np.ndarray:
    """Return the points that the flow vectors ``h w 2`` lead to: ``h w 2``, x and y."""
    y, x = np.mgrid[: flow.shape[0], : flow.shape[1]].astype(np.float32)
    return np.stack([x, y], axis=-1) + flow[..., :2]


def at(image: np.ndarray, points: np.ndarray, interpolation: int = cv2.INTER_LINEAR) -> np.ndarray:
    """Sample ``image`` ``h w [c]`` at ``points`` ``a b 2`` (x, y): ``a b [c]``. The border is replicated."""
    return cv2.remap(image, points[..., 0], points[..., 1], interpolation, borderMode=cv2.BORDER_REPLICATE)
