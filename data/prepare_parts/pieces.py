"""From the survey of a source to pieces that are kept, or dropped for a stated reason."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.prepare_parts.options import PrepareOptions
from data.prepare_parts.survey import FULL_STEP, Bars, Survey

_BAR_MARGIN = 2  # pixels next to a bar, smeared by compression


@dataclass(frozen=True)
class Piece:
    """Frames ``start`` to ``stop`` (exclusive), cropped to the window ``top``, ``left``, ``height``, ``width``.

    ``reason`` says why the piece is dropped; empty if it is kept.
    """

    start: int
    stop: int
    top: int
    left: int
    height: int
    width: int
    reason: str = ""


def find_pieces(seen: Survey, options: PrepareOptions) -> list[Piece]:
    """Return all pieces of a source in order; they partition its frames."""
    black = np.array(seen.luma) < options.black
    borders = {0, len(black), *seen.cuts, *(np.flatnonzero(np.diff(black)) + 1).tolist()}
    ends = sorted(borders)
    pieces = []
    for start, stop in pairwise(ends):
        if black[start]:
            pieces.append(Piece(start, stop, 0, 0, *seen.size, reason="black"))
            continue
        parts = -(-(stop - start) // options.max_frames)
        marks = [start + (stop - start) * part // parts for part in range(parts + 1)]
        pieces += [_judge(seen, a, b, options) for a, b in pairwise(marks)]
    return pieces


def _judge(seen: Survey, start: int, stop: int, options: PrepareOptions) -> Piece:
    # Only every FULL_STEP-th frame was examined at full size. A short piece may contain none: use the one before it.
    full_frames = slice(
        start // FULL_STEP if stop - start < FULL_STEP else -(-start // FULL_STEP), -(-stop // FULL_STEP)
    )
    top, left, height, width = _window(seen.bars[full_frames], seen.size)
    motion = float(np.mean(seen.motion[start + 1 : stop])) if stop - start > 1 else 0.0
    sharpness = float(np.median(seen.sharpness[full_frames]))
    reason = ""
    if stop - start < options.min_frames:
        reason = f"short ({stop - start} frames)"
    elif min(height, width) < options.min_side:
        reason = f"small ({height}x{width})"
    elif motion < options.static:
        reason = f"static (changes by {motion:.3f} levels a frame)"
    elif sharpness < options.blurred:
        reason = f"blurred (finest octave {sharpness:.3f})"
    return Piece(start, stop, top, left, height, width, reason)


def _window(bars: list[Bars], size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the picture inside the bars common to all frames; even, for 4:2:0."""
    first_row, last_row, first_column, last_column = (min(side) for side in zip(*bars, strict=True))
    top, bottom, left, right = (n + _BAR_MARGIN if n else 0 for n in (first_row, last_row, first_column, last_column))
    top, left = top + top % 2, left + left % 2
    height, width = size[0] - top - bottom, size[1] - left - right
    return top, left, max(0, height - height % 2), max(0, width - width % 2)
