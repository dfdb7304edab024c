"""Sizes in pixels of the output, of tiles, and of boxes on the output."""

from __future__ import annotations

import re

from ldm_video.core.errors import UserError

LARGEST = 65500
"""Maximum pixels per side of any output: JPEG's limit. A video encoder's is lower."""


def output_size(size: tuple[int, int], scale: float | None, height: int | None) -> tuple[int, int]:
    """Return (height, width) of the output: ``scale`` times the input, or ``height`` with the aspect ratio kept.

    Sides are even, except at a whole ``scale``. Raises ``UserError`` unless exactly one of the two is given and valid.
    """
    result = _output_size(size, scale, height)
    if max(result) > LARGEST:
        option = "--scale" if height is None else "--height"
        raise UserError(f"the output would be {result[1]}x{result[0]}, at most {LARGEST} is possible; lower {option}")
    return result


def _output_size(size: tuple[int, int], scale: float | None, height: int | None) -> tuple[int, int]:
    if (scale is None) == (height is None):
        raise UserError("give either scale or height, and not both")
    if height is not None:
        if height < 2 or height % 2:
            raise UserError(f"--height {height} is not a positive even number; video needs even sizes")
        if height > LARGEST:
            raise UserError(f"--height {height} is above {LARGEST}; choose a smaller one")
        return height, 2 * max(1, round(size[1] * height / size[0] / 2))
    assert scale is not None
    if not 1 <= scale <= 8:
        raise UserError(f"--scale {scale} is outside 1 to 8; choose 1 (inpaint only) to 8")
    if scale == int(scale):
        return size[0] * int(scale), size[1] * int(scale)
    return 2 * round(size[0] * scale / 2), 2 * round(size[1] * scale / 2)


def parse_tile(text: str, multiple: int, overlap: int) -> tuple[int, int]:
    """Parse ``HxW`` in output pixels: both must be multiples of ``multiple`` above ``overlap``, or ``UserError``."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip())
    if not match:
        raise UserError(f"tile '{text}' is not HEIGHTxWIDTH, such as 512x512")
    tile = int(match[1]), int(match[2])
    if any(side % multiple or side <= overlap for side in tile):
        raise UserError(f"tile {text}: both sides must be multiples of {multiple} above {overlap}, such as 512x512")
    return tile


def scale_box(
    box: tuple[int, int, int, int], source: tuple[int, int], target: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Map a box ``x, y, w, h`` on a ``source`` (height, width) grid to the smallest that covers it on ``target``."""
    x, y, w, h = box
    # Integer arithmetic: a float quotient one bit too large would make the box a pixel larger.
    left, top = x * target[1] // source[1], y * target[0] // source[0]
    right, bottom = -(-(x + w) * target[1] // source[1]), -(-(y + h) * target[0] // source[0])
    return left, top, right - left, bottom - top
