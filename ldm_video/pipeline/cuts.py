"""Cut detection: where adjacent frames share neither colours nor structure, and not for one frame only."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from ldm_video.core.tensors import to_bytes

THRESHOLD = 0.24  # on 69 real shots: within a shot at most 0.19, between shots of different places nearly always above

_SIZE = (36, 64)  # height and width at which frames are compared
_REACH = (7, 16)  # rows and columns of it by which a picture may shift from frame to frame and still be matched
_BINS = 8  # per colour channel
_FLAT = 2.0  # contrast in levels of 0..255, below which a picture has no structure
_LEAST = 0.05  # visible fraction of a picture below which it says nothing about the rest


@dataclass(frozen=True)
class _Glance:
    """A downscaled frame: ``picture`` ``h w 3`` uint8 and ``grey`` ``h w`` float32, both in 0..255.

    ``colours``: a histogram that sums to one. ``shown``: the visible pixels, ``h w`` in {0, 1}; None if nothing is
    hidden.
    """

    picture: np.ndarray
    grey: np.ndarray
    colours: np.ndarray
    shown: np.ndarray | None = None


class CutDetector:
    """Detect hard cuts as frames come in, one frame late. Holds two small pictures and the last hole.

    Fades, dissolves, flashes of one frame and pans of up to a quarter of the picture per frame are not cuts; nor is
    anything that happens in holes. A frame that is almost entirely hidden is skipped.
    """

    def __init__(self) -> None:
        self._count = 0
        self._last: _Glance | None = None  # of the current shot
        self._doubtful: _Glance | None = None  # may begin a new shot
        self._hole: Tensor | None = None
        self._shown: np.ndarray | None = None  # the visible pixels around it

    def push(self, frame: Tensor, hole: Tensor | None = None) -> int | None:
        """Add the next frame, ``3 h w`` in [-1, 1] of any size, and its hole, ``1 H W`` in {0, 1} of any size.

        Returns the index, from 0, of the previous frame if a shot begins there, else None.
        """
        if hole is not self._hole:  # a static hole is the same tensor every time
            self._hole, self._shown = hole, None if hole is None else _beside(hole, frame.shape[-2:])
        now, last, doubtful = _look(frame, self._shown), self._last, self._doubtful
        self._count += 1
        if now.shown is not None and now.shown.mean() < _LEAST:
            self._last, self._doubtful = doubtful or last, None
            return None if doubtful is None else self._count - 2
        if doubtful is not None and last is not None:
            self._doubtful = None
            if not _apart(last, now):  # the frame in between was a flash
                self._last = now
                return None
            self._compare(doubtful, now)
            return self._count - 2
        self._compare(now if last is None else last, now)
        return None

    def finish(self) -> int | None:
        """Return the index of the last frame if a shot begins there, else None; no later frame can refute it."""
        doubtful, self._doubtful = self._doubtful, None
        return None if doubtful is None else self._count - 1

    def _compare(self, last: _Glance, now: _Glance) -> None:
        if _apart(last, now):
            self._last, self._doubtful = last, now
        else:
            self._last = now


def _apart(first: _Glance, second: _Glance) -> bool:
    return _difference(first, second) > THRESHOLD


def _look(frame: Tensor, shown: np.ndarray | None = None) -> _Glance:
    pixels = rearrange(to_bytes(frame.cpu()), "c h w -> h w c").contiguous().numpy()
    small = cv2.resize(pixels, _SIZE[::-1], interpolation=cv2.INTER_AREA)
    return _Glance(small, cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), _colours(small, shown), shown)


def _beside(hole: Tensor, size: torch.Size) -> np.ndarray | None:
    """Return what is visible of a downscaled frame of ``size`` around the hole ``1 H W``.

    Returns ``h w`` in {0, 1}; None if all of it is visible. Pixels next to the hole are smeared with its contents;
    downscaled pixels that overlap them are not visible.
    """
    if not bool(hole.any()):
        return None
    hidden = hole[0].float().cpu().numpy()
    for height, width in (size, _SIZE):  # resized as the picture is: above 0 wherever a hidden pixel contributes
        hidden = (cv2.resize(hidden, (width, height), interpolation=cv2.INTER_AREA) > 0).astype(np.float32)
        hidden = cv2.dilate(hidden, np.ones((3, 3), np.uint8)) if (height, width) == size else hidden
    return (1 - hidden).astype(np.uint8)


def _colours(picture: np.ndarray, shown: np.ndarray | None) -> np.ndarray:
    colours = cv2.calcHist([picture], [0, 1, 2], shown, [_BINS] * 3, [0, 256] * 3)
    for axis in range(3):  # a colour near the border of two bins counts for both
        padded = np.pad(colours, [(1, 1) if a == axis else (0, 0) for a in range(3)], mode="edge")
        before, same, after = (padded.take(range(i, i + _BINS), axis) for i in range(3))
        colours = (before + 2 * same + after) / 4
    return colours / max(colours.sum(), 1e-9)


def _difference(first: _Glance, second: _Glance) -> float:
    """Return how little two frames have in common, in [0, 1], independently of where the camera points.

    The geometric mean of what their colour histograms do not share and of how badly the middle of one is matched in the
    other (normalised cross-correlation over shifts, Lewis 1995: invariant to brightness and contrast). A pan changes
    neither much, a fade does not change the second, a cut changes both.
    """
    if first.shown is not None or second.shown is not None:
        return _difference_beside_holes(first, second)
    colour = 1 - float(np.minimum(first.colours, second.colours).sum())
    found = max(_found(first.grey, second.grey), _found(second.grey, first.grey))
    return float(np.sqrt(max(colour, 0) * (1 - found)))


def _found(first: np.ndarray, second: np.ndarray) -> float:
    """Return how well the middle of ``first`` is matched anywhere in ``second``: correlation in [0, 1]."""
    rows, columns = _REACH
    middle = first[rows:-rows, columns:-columns]
    if middle.std() < _FLAT:
        return 0.0
    return float(np.clip(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED).max(), 0, 1))


def _difference_beside_holes(first: _Glance, second: _Glance) -> float:
    """Compute :func:`_difference` over the pixels visible in both frames; 0 if there are hardly any."""
    views = [np.ones(_SIZE, np.uint8) if glance.shown is None else glance.shown for glance in (first, second)]
    both = views[0] * views[1]
    if both.mean() < _LEAST:
        return 0.0
    colours = [_colours(glance.picture, both) for glance in (first, second)]
    colour = 1 - float(np.minimum(*colours).sum())
    return float(np.sqrt(max(colour, 0) * (1 - _found_beside_holes(first.grey, second.grey, *views))))


def _found_beside_holes(first: np.ndarray, second: np.ndarray, shown: np.ndarray, also: np.ndarray) -> float:
    """Return how well ``first``, where ``shown``, is matched in ``second``, where ``also`` is 1: correlation in [0, 1].

    Each shift counts the pixels visible in both (Padfield 2012, "Masked object registration in the Fourier domain",
    here as plain sums), if they are at least half of those at no shift. The whole frame is shifted, since its middle
    may be hidden.
    """
    level = float(first[shown * also > 0].mean())  # smaller sums lose less precision
    a, b = shown.astype(np.float32), np.pad(also.astype(np.float32), [(side, side) for side in _REACH])
    x, y = (first - level) * a, (np.pad(second, [(side, side) for side in _REACH]) - level) * b
    count, of_x, of_y, xx, yy, xy = (
        cv2.matchTemplate(large, small, cv2.TM_CCORR)
        for large, small in ((b, a), (b, x), (y, a), (b, x * x), (y * y, a), (y, x))
    )
    count = np.maximum(count, 1)
    spread = np.maximum(xx - of_x**2 / count, 0), np.maximum(yy - of_y**2 / count, 0)
    told = (count >= (shown * also).sum() / 2) & (np.minimum(*spread) >= _FLAT**2 * count)
    alike = (xy - of_x * of_y / count)[told] / np.sqrt(spread[0] * spread[1])[told]
    return float(np.clip(alike.max(initial=0), 0, 1))
