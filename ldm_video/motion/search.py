"""Dense inverse search (Kroeger et al. 2016, arXiv:1603.03590): optical flow that needs no weights.

What comes out depends on the two pictures alone, for which OpenCV has to be told two things. It divides a search among
its threads, and a search that is divided ends otherwise: so it has one thread wherever this module is loaded, and
whoever wants more does several searches at once. And a search object that was once told where to begin remembers it:
so each search has its own.
"""

from __future__ import annotations

import cv2
import numpy as np

cv2.setNumThreads(1)


def dense_flow(grey: np.ndarray, other: np.ndarray, preset: int) -> np.ndarray:
    """Where each pixel of ``grey`` is found in ``other``, both ``h w`` uint8: ``h w 2``, dx and dy in pixels.

    ``preset`` is one of ``cv2.DISOPTICAL_FLOW_PRESET_*``; they stop at half size or below.
    """
    return cv2.DISOpticalFlow_create(preset).calc(grey, other, None)


def fine_flow(grey: np.ndarray, other: np.ndarray, begin: np.ndarray | None = None) -> np.ndarray:
    """:func:`dense_flow`, fast and down to single pixels, so that pictures can be read where it leads.

    ``begin`` ``h w 2``: where the search begins.
    """
    search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
    search.setFinestScale(0)
    return search.calc(grey, other, begin)
