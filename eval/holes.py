"""The benchmark's holes: frozen, drawn from a seeded generator, covering a given fraction of the frame.

Each family is ``(rng, frames, size, area) -> mask``, where ``mask(t)`` is ``h w`` uint8 in {0, 1}, 1 = hole, and
``size`` is (height, width). All random numbers are drawn at once but each mask on demand, so that memory does not grow
with the clip. As with the degradations, nothing is shared with training's masks, so that tables stay comparable when
those change.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import cv2
import numpy as np

from eval.clips import check_numbering
from ldm_video.core.errors import UserError
from ldm_video.video_io.stills import list_frames

MaskOf = Callable[[int], np.ndarray]  # frame -> h w
Family = Callable[[np.random.Generator, int, tuple[int, int], float], MaskOf]
OBJECT = "object"  # the one family that is read from files, not drawn

_OUTLINE_POINTS = 128
_SUBPIXEL_BITS = 8  # of OpenCV's polygon rasteriser
_LOGO_STROKES = 3
_LOGO_BOX = (1.3, 1.0)  # height, width of the logo in its own units
_LOGO_THICKNESS = 0.09
_LOGO_MARGIN = 0.06  # from the frame's borders, as a fraction of its short side
_SCRATCHES = 3


def moving_blob(rng: np.random.Generator, frames: int, size: tuple[int, int], area: float) -> MaskOf:
    """One smooth blob that drifts and bounces off the borders: what it hides in one frame is visible in another."""
    angle = np.linspace(0, 2 * np.pi, _OUTLINE_POINTS, endpoint=False)
    waves = [rng.uniform(0, 0.3 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 4)]
    outline = (1 + np.sum(waves, axis=0))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)  # n 2, x y
    outline *= np.sqrt(area * size[0] * size[1] / _polygon_area(outline))
    reach = np.abs(outline).max(axis=0)
    room = np.maximum(np.array([size[1], size[0]]) - 2 * reach, 0)
    heading, speed = rng.uniform(0, 2 * np.pi), rng.uniform(0.005, 0.015) * min(size)
    start = rng.uniform(0, 1, 2) * room

    def mask(index: int) -> np.ndarray:
        travelled = start + index * speed * np.array([np.cos(heading), np.sin(heading)])
        points = outline + reach + _bounce(travelled, room)
        fixed = np.round(points * 2**_SUBPIXEL_BITS).astype(np.int32)
        blob = np.zeros(size, np.uint8)
        cv2.fillPoly(blob, [fixed], 1, shift=_SUBPIXEL_BITS)
        return blob

    return mask


def still_box(rng: np.random.Generator, frames: int, size: tuple[int, int], area: float) -> MaskOf:
    """One static upright rectangle, aspect ratio up to 1 : 2 either way."""
    pixels = area * size[0] * size[1]
    height = min(size[0], max(1, round(np.sqrt(pixels) * 2 ** rng.uniform(-0.5, 0.5))))
    width = min(size[1], max(1, round(pixels / height)))
    top, left = (int(rng.integers(0, side - length + 1)) for side, length in zip(size, (height, width), strict=True))
    box = np.zeros(size, np.uint8)
    box[top : top + height, left : left + width] = 1
    return lambda index: box


def still_logo(rng: np.random.Generator, frames: int, size: tuple[int, int], area: float) -> MaskOf:
    """A station logo in one corner: strokes in a ring, a row of letter stems below. ``area`` is that of its ink.

    Raises ``UserError`` if the logo does not fit the frame.
    """
    ends = rng.uniform(0.2, 0.8, (_LOGO_STROKES, 2, 2))  # stroke, end, (y x)
    stems = [((1.1, x), (1.25, x)) for x in (0.1, 0.3, 0.5, 0.7, 0.9)]
    lines = [*((tuple(a), tuple(b)) for a, b in ends.tolist()), *stems]
    right, bottom = rng.integers(0, 2, 2)
    scale = np.sqrt(area * size[0] * size[1])  # pixels per unit, initially
    ink = _draw_logo(lines, scale)
    for _ in range(4):
        scale *= np.sqrt(area * size[0] * size[1] / max(1, int(np.count_nonzero(ink))))
        ink = _draw_logo(lines, scale)
    margin = round(_LOGO_MARGIN * min(size))
    if ink.shape[0] + margin > size[0] or ink.shape[1] + margin > size[1]:
        raise UserError(
            f"a logo of {area:.1%} of the frame does not fit a {size[1]}x{size[0]} clip; use hole_area 0.01"
        )
    top = size[0] - margin - ink.shape[0] if bottom else margin
    left = size[1] - margin - ink.shape[1] if right else margin
    logo = np.zeros(size, np.uint8)
    logo[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return lambda index: logo


def trembling_scratches(rng: np.random.Generator, frames: int, size: tuple[int, int], area: float) -> MaskOf:
    """Film scratches: thin, nearly vertical lines of full height that jitter sideways from frame to frame."""
    height, width = size
    thickness = area * width / _SCRATCHES
    columns = (np.arange(_SCRATCHES) + rng.uniform(0.3, 0.7, _SCRATCHES)) * width / _SCRATCHES
    slant = rng.uniform(-0.04, 0.04, _SCRATCHES) * width  # pixels from top to bottom
    tremble = rng.uniform(-0.01, 0.01, (frames, _SCRATCHES)) * width
    down = np.linspace(-0.5, 0.5, height)

    def mask(index: int) -> np.ndarray:
        middle = columns + tremble[index] + slant * down[:, None]  # h n
        first = np.round(middle - thickness / 2)[..., None]  # h n 1
        last = np.maximum(np.round(middle + thickness / 2)[..., None], first + 1)
        x = np.arange(width)
        within = np.logical_and(x >= first, x < last)  # h n w
        return np.any(within, axis=1).astype(np.uint8)

    return mask


FAMILIES: Mapping[str, Family] = {
    "blob": moving_blob,
    "box": still_box,
    "logo": still_logo,
    "scratch": trembling_scratches,
}


def read_object(folder: Path, frames: int, source: tuple[int, int], size: tuple[int, int]) -> MaskOf:
    """Return masks read on demand from numbered images, white = object, one for each frame of a clip.

    ``source`` is the clip's size: masks of another size are resized to it (nearest neighbour), then cropped to ``size``
    from the top left like the clip. Raises ``UserError`` for a gap in the numbering, too few masks, an unreadable mask,
    or masks without any white pixel.
    """
    check_numbering(folder)
    files = list_frames(folder)
    if len(files) < frames:
        raise UserError(f"{folder} has {len(files)} masks for a clip of {frames} frames; give one for each frame")

    def mask(index: int) -> np.ndarray:
        image = cv2.imread(str(files[index]), cv2.IMREAD_GRAYSCALE)
        if image is None:
            raise UserError(f"cannot read the mask {files[index]}")
        if image.shape != source:
            image = cv2.resize(image, source[::-1], interpolation=cv2.INTER_NEAREST)
        return (image[: size[0], : size[1]] > 127).astype(np.uint8)

    if not any(mask(index).any() for index in range(frames)):
        raise UserError(f"the masks in {folder} have no white pixel; an object is white, all else black")
    return mask


def _draw_logo(lines: list[tuple[tuple[float, ...], tuple[float, ...]]], scale: float) -> np.ndarray:
    """Draw ``h w`` uint8 in {0, 1}: pixels whose centre is within half a stroke of a line or of the ring."""
    height, width = (max(1, int(np.ceil(side * scale))) for side in _LOGO_BOX)
    y, x = (np.mgrid[:height, :width] + 0.5) / scale
    distance = np.abs(np.hypot(y - 0.5, x - 0.5) - (0.5 - _LOGO_THICKNESS / 2))
    for (y0, x0), (y1, x1) in lines:
        dy, dx = y1 - y0, x1 - x0
        along = np.clip(((y - y0) * dy + (x - x0) * dx) / (dy**2 + dx**2), 0, 1)
        distance = np.minimum(distance, np.hypot(y - y0 - along * dy, x - x0 - along * dx))
    return (distance <= _LOGO_THICKNESS / 2).astype(np.uint8)


def _bounce(position: np.ndarray, room: np.ndarray) -> np.ndarray:
    """Reflect a straight path into [0, room]."""
    folded = np.mod(position, np.maximum(2 * room, 1e-9))
    return np.where(folded > room, 2 * room - folded, folded)


def _polygon_area(points: np.ndarray) -> float:
    x, y = points.T
    return float(abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2)
