"""From what was seen of a source to pieces: kept, or dropped for a reason."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from data.prepare_parts.options import PrepareOptions
from data.prepare_parts.survey import FULL_STEP, Bars, Survey

_BAR_RIM = 2  # pixels beside a bar that compression has smeared


@dataclass(frozen=True)
class Piece:
    """Frames ``start`` to ``stop`` (excluded), of which the window ``top``, ``left``, ``height``, ``width`` is picture.

    ``reason`` says why it is dropped; empty: it is kept.
    """

    start: int
    stop: int
    top: int
    left: int
    height: int
    width: int
    reason: str = ""


def find_pieces(seen: Survey, options: PrepareOptions) -> list[Piece]:
    """All pieces of a source in order; together they hold every frame once."""
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
    # The frames that were seen in full lie on a grid: a short piece may hold none, and takes the one before.
    looked = slice(start // FULL_STEP if stop - start < FULL_STEP else -(-start // FULL_STEP), -(-stop // FULL_STEP))
    top, left, height, width = _window(seen.bars[looked], seen.size)
    motion = float(np.mean(seen.motion[start + 1 : stop])) if stop - start > 1 else 0.0
    sharpness = float(np.median(seen.sharpness[looked]))
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
    """(top, left, height, width) of the picture inside the bars that all frames have; even, as 4:2:0 needs."""
    first_row, last_row, first_column, last_column = (min(side) for side in zip(*bars, strict=True))
    top, bottom, left, right = (n + _BAR_RIM if n else 0 for n in (first_row, last_row, first_column, last_column))
    top, left = top + top % 2, left + left % 2
    height, width = size[0] - top - bottom, size[1] - left - right
    return top, left, max(0, height - height % 2), max(0, width - width % 2)
