"""Where a shot ends: PySceneDetect's content score of each frame, judged against the frames around it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scenedetect import ContentDetector, FrameTimecode

_LEAST = 15.0  # content score below which nothing is a cut; PySceneDetect's own (`min_content_val`)
_WINDOW = 2  # frames on each side that a frame is compared with; PySceneDetect's own (`window_width`)
_FAR_ABOVE = 2 * _LEAST  # hardly any motion reaches it, so that other cuts near by are looked for
_WIDE_WINDOW = 12
_NEAR_BY = 2  # cuts that may hide in the wide window


class ContentScore(ContentDetector):
    """How much a frame differs from the one before in hue, saturation and brightness, mean in levels of 255."""

    def of(self, index: int, frame: np.ndarray) -> float:
        """The score of ``h w c`` uint8 BGR; 0 for the first. Frames must come in order."""
        return float(self._calculate_frame_score(FrameTimecode(index, fps=25.0), frame))


def find_cuts(scores: Sequence[float], cut: float) -> list[int]:
    """The frames with which a new shot begins, ascending, from the content score of every frame.

    As PySceneDetect's adaptive detector: a frame is one whose score is at least ``cut`` times the mean of the two
    before and the two after it, so that a pan is no cut. Unlike there, the first and the last two frames are judged
    by the neighbours they have; and of cuts that lie within two frames none hides the others: a very high score is
    compared with twelve frames on each side, of which the two highest are left out. Fewer would call a fast pan in
    which every frame is shown twice cuts.
    """
    cuts = []
    for index in range(1, len(scores)):
        score = scores[index]
        stands_out = score >= _LEAST and score >= cut * _mean(_beside(scores, index))
        if not stands_out and score >= _FAR_ABOVE and (calm := _calm(scores, index)):
            stands_out = score >= cut * _mean(calm)
        if stands_out:
            cuts.append(index)
    return cuts


def _beside(scores: Sequence[float], index: int) -> list[float]:
    """The scores of two frames on each side; the first frame has none, as there is nothing before it."""
    return [*scores[max(1, index - _WINDOW) : index], *scores[index + 1 : index + 1 + _WINDOW]]


def _calm(scores: Sequence[float], index: int) -> list[float]:
    """Those of as many frames as twelve on each side are (near the ends more on one side), without the two highest."""
    start = max(1, min(index - _WIDE_WINDOW, len(scores) - 1 - 2 * _WIDE_WINDOW))
    around = [*scores[start:index], *scores[index + 1 : start + 1 + 2 * _WIDE_WINDOW]]
    return sorted(around)[:-_NEAR_BY]


def _mean(scores: Sequence[float]) -> float:
    return sum(scores) / len(scores) if scores else 0.0
