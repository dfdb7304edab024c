"""Shot-cut detection: PySceneDetect's content score of each frame, compared with those of the frames around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scenedetect import ContentDetector, FrameTimecode

_MIN_SCORE = 15.0  # minimum content score of a cut; PySceneDetect's default (`min_content_val`)
_WINDOW = 2  # frames on each side to compare with; PySceneDetect's default (`window_width`)
_HIGH_SCORE = 2 * _MIN_SCORE  # motion rarely scores this high: compare again with the wide window
_WIDE_WINDOW = 12
_TOLERATED_CUTS = 2  # other cuts tolerated in the wide window


class ContentScore(ContentDetector):
    """Mean difference of a frame from the previous one in hue, saturation and brightness, in levels of 255."""

    def of(self, index: int, frame: np.ndarray) -> float:
        """Return the score of frame ``index``, ``h w c`` uint8 BGR; 0 for the first. Frames must come in order."""
        return float(self._calculate_frame_score(FrameTimecode(index, fps=25.0), frame))


def find_cuts(scores: Sequence[float], cut: float) -> list[int]:
    """Return the first frame of every shot but the first, ascending, from the content score of every frame.

    As in PySceneDetect's adaptive detector, a frame starts a shot if its score is at least ``cut`` times the mean of
    the two before and the two after it, so that a pan is not a cut. There are two differences. Frames near either end
    are compared with the neighbours they have. And cuts within two frames of each other do not hide one another: a
    very high score is also compared with twelve frames on each side, without the two highest. With a smaller window,
    a fast pan with duplicated frames would be taken for cuts.
    """
    cuts = []
    for index in range(1, len(scores)):
        score = scores[index]
        stands_out = score >= _MIN_SCORE and score >= cut * _mean(_neighbours(scores, index))
        if not stands_out and score >= _HIGH_SCORE and (wider := _wide_neighbours(scores, index)):
            stands_out = score >= cut * _mean(wider)
        if stands_out:
            cuts.append(index)
    return cuts


def _neighbours(scores: Sequence[float], index: int) -> list[float]:
    """Return the scores of two frames on each side, without frame 0, whose score is meaningless."""
    return [*scores[max(1, index - _WINDOW) : index], *scores[index + 1 : index + 1 + _WINDOW]]


def _wide_neighbours(scores: Sequence[float], index: int) -> list[float]:
    """Return the scores of the 24 nearest frames (near the ends, more on one side), without the two highest."""
    start = max(1, min(index - _WIDE_WINDOW, len(scores) - 1 - 2 * _WIDE_WINDOW))
    around = [*scores[start:index], *scores[index + 1 : start + 1 + 2 * _WIDE_WINDOW]]
    return sorted(around)[:-_TOLERATED_CUTS]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else 0.0
