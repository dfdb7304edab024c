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
_MAX_SHIFT = (7, 16)  # rows and columns of it by which a picture may shift from frame to frame and still be matched
_BINS = 8  # per colour channel
_MIN_CONTRAST = 2.0  # contrast in levels of 0..255, below which a picture has no structure
_MIN_VISIBLE = 0.05  # visible fraction of a picture below which it says nothing about the rest


@dataclass(frozen=True)
class _Thumbnail:
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
        self._last: _Thumbnail | None = None  # of the current shot
        self._candidate: _Thumbnail | None = None  # may begin a new shot
        self._hole: Tensor | None = None
        self._shown: np.ndarray | None = None  # the visible pixels around it

    def push(self, frame: Tensor, hole: Tensor | None = None) -> int | None:
        """Add the next frame, ``3 h w`` in [-1, 1] of any size, and its hole, ``1 H W`` in {0, 1} of any size.

        Returns the index, from 0, of the previous frame if a shot begins there, else None.
        """
        if hole is not self._hole:  # a static hole is the same tensor every time
            self._hole, self._shown = hole, None if hole is None else _visible(hole, frame.shape[-2:])
        now, last, candidate = _thumbnail(frame, self._shown), self._last, self._candidate
        self._count += 1
        if now.shown is not None and now.shown.mean() < _MIN_VISIBLE:
            self._last, self._candidate = candidate or last, None
            return None if candidate is None else self._count - 2
        if candidate is not None and last is not None:
            self._candidate = None
            if not _differ(last, now):  # the frame in between was a flash
                self._last = now
                return None
            self._compare(candidate, now)
            return self._count - 2
        self._compare(now if last is None else last, now)
        return None

    def finish(self) -> int | None:
        """Return the index of the last frame if a shot begins there, else None; no later frame can refute it."""
        candidate, self._candidate = self._candidate, None
        return None if candidate is None else self._count - 1

    def _compare(self, last: _Thumbnail, now: _Thumbnail) -> None:
        if _differ(last, now):
            self._last, self._candidate = last, now
        else:
            self._last = now


def _differ(first: _Thumbnail, second: _Thumbnail) -> bool:
    return _difference(first, second) > THRESHOLD


def _thumbnail(frame: Tensor, shown: np.ndarray | None = None) -> _Thumbnail:
    pixels = rearrange(to_bytes(frame.cpu()), "c h w -> h w c").contiguous().numpy()
    small = cv2.resize(pixels, _SIZE[::-1], interpolation=cv2.INTER_AREA)
    return _Thumbnail(small, cv2.cvtColor(small, cv2.COLOR_RGB2GRAY).astype(np.float32), _colours(small, shown), shown)


def _visible(hole: Tensor, size: torch.Size) -> np.ndarray | None:
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


def _difference(first: _Thumbnail, second: _Thumbnail) -> float:
    """Return how little two frames have in common, in [0, 1], independently of where the camera points.

    The geometric mean of what their colour histograms do not share and of how badly the middle of one is matched in the
    other (normalised cross-correlation over shifts, Lewis 1995: invariant to brightness and contrast). A pan changes
    neither much, a fade does not change the second, a cut changes both.
    """
    if first.shown is not None or second.shown is not None:
        return _masked_difference(first, second)
    colour = 1 - float(np.minimum(first.colours, second.colours).sum())
    found = max(_match(first.grey, second.grey), _match(second.grey, first.grey))
    return float(np.sqrt(max(colour, 0) * (1 - found)))


def _match(first: np.ndarray, second: np.ndarray) -> float:
    """Return how well the middle of ``first`` is matched anywhere in ``second``: correlation in [0, 1]."""
    rows, columns = _MAX_SHIFT
    middle = first[rows:-rows, columns:-columns]
    if middle.std() < _MIN_CONTRAST:
        return 0.0
    return float(np.clip(cv2.matchTemplate(second, middle, cv2.TM_CCOEFF_NORMED).max(), 0, 1))


def _masked_difference(first: _Thumbnail, second: _Thumbnail) -> float:
    """Compute :func:`_difference` over the pixels visible in both frames; 0 if there are hardly any."""
    views = [np.ones(_SIZE, np.uint8) if glance.shown is None else glance.shown for glance in (first, second)]
    both = views[0] * views[1]
    if both.mean() < _MIN_VISIBLE:
        return 0.0
    colours = [_colours(glance.picture, both) for glance in (first, second)]
    colour = 1 - float(np.minimum(*colours).sum())
    return float(np.sqrt(max(colour, 0) * (1 - _masked_match(first.grey, second.grey, *views))))


def _masked_match(first: np.ndarray, second: np.ndarray, shown: np.ndarray, also: np.ndarray) -> float:
    """Return how well ``first``, where ``shown``, is matched in ``second``, where ``also`` is 1: correlation in [0, 1].

    Each shift counts the pixels visible in both (Padfield 2012, "Masked object registration in the Fourier domain",
    here as plain sums), if they are at least half of those at no shift. The whole frame is shifted, since its middle
    may be hidden.
    """
    level = float(first[shown * also > 0].mean())  # smaller sums lose less precision
    a, b = shown.astype(np.float32), np.pad(also.astype(np.float32), [(side, side) for side in _MAX_SHIFT])
    x, y = (first - level) * a, (np.pad(second, [(side, side) for side in _MAX_SHIFT]) - level) * b
    count, of_x, of_y, xx, yy, xy = (
        cv2.matchTemplate(large, small, cv2.TM_CCORR)
        for large, small in ((b, a), (b, x), (y, a), (b, x * x), (y * y, a), (y, x))
    )
    count = np.maximum(count, 1)
    spread = np.maximum(xx - of_x**2 / count, 0), np.maximum(yy - of_y**2 / count, 0)
    valid = (count >= (shown * also).sum() / 2) & (np.minimum(*spread) >= _MIN_CONTRAST**2 * count)
    correlation = (xy - of_x * of_y / count)[valid] / np.sqrt(spread[0] * spread[1])[valid]
    return float(np.clip(correlation.max(initial=0), 0, 1))
