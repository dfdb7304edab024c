"""Where shots begin: two neighbours that share neither colours nor structure, and not for one frame only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from einops import rearrange
from torch import Tensor

from ldm_video.core.tensors import to_bytes

THRESHOLD = 0.24  # on 69 real shots: inside a shot at most 0.19, between two of different places nearly always above

_SIZE = (36, 64)  # every frame is looked at in this size
_REACH = (7, 16)  # by so much of it a picture may move from frame to frame and still be found again
_BINS = 8  # of each colour channel
_FLAT = 2.0  # levels of 0..255: contrast below which a picture has no structure


@dataclass(frozen=True)
class _Glance:
    """``grey`` ``h w`` float32 in 0..255; ``colours``, a histogram that sums to one."""

    grey: np.ndarray
    colours: np.ndarray


class CutDetector:
    """Tells of hard cuts as frames come in, one frame late. Holds two small pictures.

    Fades and dissolves, flashes of one frame and pans of up to a quarter of the picture in a frame are no cuts.
    """

    def __init__(self) -> None:
        self._count = 0
        self._last: _Glance | None = None  # of the shot that goes on
        self._doubtful: _Glance | None = None  # may begin a new shot

    def push(self, frame: Tensor) -> int | None:
        """Take the next frame, ``3 h w`` in [-1, 1] of any size.

        Returns the number, counted from 0, of the frame before it when a shot begins there, else None.
        """
        now, last, doubtful = _look(frame), self._last, self._doubtful
        self._count += 1
        if doubtful is not None and last is not None:
            self._doubtful = None
            if not _apart(last, now):  # as if the frame between had not been there: a flash
                self._last = now
                return None
            self._compare(doubtful, now)
            return self._count - 2
        self._compare(now if last is None else last, now)
        return None

    def finish(self) -> int | None:
        """The number of the last frame when a shot begins there; there is nothing after it that could deny it."""
        doubtful, self._doubtful = self._doubtful, None
        return None if doubtful is None else self._count - 1

    def _compare(self, last: _Glance, now: _Glance) -> None:
        if _apart(last, now):
            self._last, self._doubtful = last, now
        else:
            self._last = now


def _apart(first: _Glance, second: _Glance) -> bool:
    return _difference(first, second) > THRESHOLD


def _look(frame: Tensor) -> _Glance:
    pixels = rearrange(to_bytes(frame.cpu()), "c h w -> h w c").contiguous().numpy()
    small = cv2.resize(pixels, _SIZE[::-1], interpolation=cv2.INTER_AREA)
    colours = cv2.calcHist([small], [0, 1, 2], None, [_BINS] * 3, [0, 256] * 3)
    for axis in range(3):  # a colour near the border of two bins belongs to both
        padded = np.pad(colours, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, same, after = (padded.take(range(i, i + _BINS), axis) for i in range(3))
        colours = (before + 2 * same + after) / 4
    return _Glance(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), colours / colours.sum())


def _difference(first: _Glance, second: _Glance) -> float:
    """How little two frames have in common, from 0 to 1; blind to where the camera looks.

    The geometric mean of what their colour histograms do not share and of how badly the middle of one is found in the
    other (normalised correlation over shifts, Lewis 1995: blind to brightness and contrast). A pan changes neither
    much, a fade does not change the second, a cut changes both.
    """
    colour = 1 - float(np.minimum(first.colours, second.colours).sum())
    found = max(_found(first.grey, second.grey), _found(second.grey, first.grey))
    return float(np.sqrt(max(colour, 0) * (1 - found)))


def _found(first: np.ndarray, second: np.ndarray) -> float:
    """How well the middle of ``first`` is found somewhere in ``second``: correlation in [0, 1]."""
    rows, columns = _REACH
    middle = first[rows:-rows, columns:-columns]
    if middle.std() < _FLAT:
        return 0.0
    return float(np.clip(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED).max(), 0, 1))
