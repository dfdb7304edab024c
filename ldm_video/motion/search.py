"""Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590): optical flow that needs no weights.

The result must depend on the two pictures alone, which takes two precautions with OpenCV. It splits a search among its
threads, which changes the result, so importing this module limits it to one thread; for parallelism, run several
searches at once. And a search object keeps the initial flow it was once given, so each search uses its own object.
"""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(1)


def dense_flow(grey: np.ndarray, other: np.ndarray, preset: int) -> np.ndarray:
    """Return where each pixel of ``grey`` is found in ``other``, both ``h w`` uint8: ``h w 2``, dx and dy in pixels.

    ``preset`` is one of ``cv2.DISOPTICAL_FLOW_PRESET_*``; these stop at half resolution or below.
    """
    return cv2.DISOpticalFlow_create(preset).calc(grey, other, None)


def fine_flow(grey: np.ndarray, other: np.ndarray, begin: np.ndarray | None = None) -> np.ndarray:
    """Like :func:`dense_flow`, fast and at full resolution, so that pictures can be warped by it.

    ``begin`` ``h w 2``: the initial flow.
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    search.setFinestScale(0)
    return search.calc(grey, other, begin)
