"""The display matrix of phones and cameras: which way is up.

ISO/IEC 14496-12 8.2.2 (``matrix`` of the track header): a stored point (x, y) is shown at (a x + c y, b x + d y). All
eight combinations of quarter turns and mirrors are supported, not only the four rotations.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
from av.sidedata.sidedata import Type
from torch import Tensor


@dataclass(frozen=True)
class Orientation:
    """Transpose first, then mirror left-right, then top-bottom."""

    transpose: bool = False
    mirror: bool = False
    flip: bool = False

    def apply(self, pixels: Tensor) -> Tensor:
        """Turn ``c h w`` as stored into ``c h w`` (or ``c w h``) upright."""
        if self.transpose:
            pixels = pixels.transpose(1, 2)  # c h w -> c w h
        axes = [2] * self.mirror + [1] * self.flip
        return (pixels.flip(axes) if axes else pixels).contiguous()


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the nearest of the eight orientations to the frame's display matrix; upright if there is none."""
    data = frame.side_data.get(Type.DISPLAYMATRIX)
    if data is None:
        return Orientation()
    a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(bytes(data), np.int32)[:9])
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, mirror=c < 0, flip=b < 0)
    return Orientation(mirror=a < 0, flip=d < 0)
