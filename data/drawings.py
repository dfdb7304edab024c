"""Lines, letters and shapes drawn over photographs, to imitate signs, grids, wires and titles.

Footage of nature and sport has few straight, thin, neutral lines of high contrast. A model that has seen none renders
them frayed and with coloured fringes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np

_CHARACTERS = list("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789.,:!?&-/ ")
_FONTS = ("sans", "italic")
_FRACTION_BITS = 4  # fractional bits of a fixed-point coordinate, OpenCV's `shift`

Drawing = Callable[[np.ndarray, np.random.Generator], None]


def draw_over(photo: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw one to three random drawings on a photo ``h w 3`` uint8, with strokes from about one pixel wide.

    Returns a new ``h w 3`` uint8. The photo's light and texture may show through.
    """
    picture = photo.copy()
    for _ in range(rng.integers(1, 4)):
        DRAWINGS[rng.integers(len(DRAWINGS))](picture, rng)
    blur = rng.uniform(0, 0.7)
    if blur > 0.3:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    shade = rng.uniform(0, 0.3)
    return cv2.addWeighted(picture, 1 - shade, photo, shade, 0)


def grid(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draw evenly spaced lines in one or two directions, in perspective; on a filled board in most draws."""
    matrix = _random_homography(picture, rng)
    if rng.random() < 0.7:
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], float)
        cv2.fillPoly(picture, [_fixed_point(_project(corners, matrix))], _colour(rng), cv2.LINE_AA, _FRACTION_BITS)
    colour, width = _colour(rng), int(rng.integers(1, 5))
    for turned in (False, True)[: rng.integers(1, 3)]:
        places = np.linspace(-1, 1, int(rng.integers(6, 40)))
        for place in places:
            ends = np.array([[place, -1], [place, 1]])
            _polyline(picture, _project(ends[:, ::-1] if turned else ends, matrix), colour, width)


def letters(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draw lines of text in a real font, on a plate in half of the draws."""
    height, width = picture.shape[:2]
    size = int(np.exp(rng.uniform(np.log(12), np.log(96))))
    x, y = int(rng.integers(-size, width)), int(rng.integers(size, height + size))
    lines = int(rng.integers(1, 7))
    if rng.random() < 0.5:
        cv2.rectangle(picture, (x - size // 2, y - size * 5 // 4), (x + 14 * size, y + lines * size), _colour(rng), -1)
    ink, weight = _colour(rng), int(rng.integers(2, 10)) * 100
    font = _font(_FONTS[rng.integers(len(_FONTS))])
    for line in range(lines):
        text = "".join(rng.choice(_CHARACTERS, rng.integers(3, 30)))
        cv2.putText(picture, text, (x, y + line * size * 5 // 4), ink, font, size, weight)


def wires(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draw thin, slightly curved lines in any direction."""
    height, width = picture.shape[:2]
    colour = _colour(rng)
    for _ in range(rng.integers(2, 12)):
        ends = rng.uniform(-0.1, 1.1, (2, 2)) * [width, height]
        bend = rng.normal(0, 0.05, 2) * [width, height]
        along = np.linspace(0, 1, 24)[:, None]
        path = ends[0] * (1 - along) + ends[1] * along + bend * (4 * along * (1 - along))
        _polyline(picture, path, colour, int(rng.integers(1, 4)))


def shapes(picture: np.ndarray, rng: np.random.Generator) -> None:
    """Draw filled polygons, most with an outline."""
    height, width = picture.shape[:2]
    for _ in range(rng.integers(1, 7)):
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 8)))
        centre = rng.uniform(0, 1, 2) * [width, height]
        radius = rng.uniform(0.04, 0.3) * min(height, width)
        points = centre + radius * np.stack([np.cos(angles), np.sin(angles)], -1)
        cv2.fillPoly(picture, [_fixed_point(points)], _colour(rng), cv2.LINE_AA, _FRACTION_BITS)
        if rng.random() < 0.6:
            _polyline(picture, np.concatenate([points, points[:1]]), _colour(rng), int(rng.integers(1, 6)))


DRAWINGS: tuple[Drawing, ...] = (grid, letters, wires, shapes)


def _colour(rng: np.random.Generator) -> list[int]:
    """Draw a colour. Half of them are grey, mostly near black or white, like print, boards and wires."""
    if rng.random() < 0.5:
        return [int(255 * rng.beta(0.4, 0.4))] * 3
    return [int(level) for level in rng.integers(0, 256, 3)]


def _random_homography(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a homography ``3 3`` from the square [-1, 1]^2 to a quadrilateral that roughly covers the picture."""
    height, width = picture.shape[:2]
    square = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = (square + rng.uniform(-0.25, 0.25, (4, 2))) @ turn * rng.uniform(0.3, 0.9)
    target = (corners + 1 + rng.uniform(-0.3, 0.3, 2)) / 2 * [width, height]
    return cv2.getPerspectiveTransform(square, target.astype(np.float32))


def _project(points: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply a homography to points: ``n 2 -> n 2``."""
    return cv2.perspectiveTransform(points[None].astype(np.float64), matrix)[0]


def _polyline(picture: np.ndarray, points: np.ndarray, colour: list[int], width: int) -> None:
    cv2.polylines(picture, [_fixed_point(points)], False, colour, width, cv2.LINE_AA, _FRACTION_BITS)


def _fixed_point(points: np.ndarray) -> np.ndarray:
    return np.round(points * 2**_FRACTION_BITS).astype(np.int32)


@lru_cache
def _font(name: str) -> cv2.FontFace:
    return cv2.FontFace(name)
