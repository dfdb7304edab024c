"""Families of hole masks for training (white = 1 = fill).

Blobs and strokes follow the free-form masks of DeepFill v2 (Yu et al. 2019) and E2FGVI / ProPainter: random Bezier
outlines, half of them moving with bounded acceleration. Rectangles matter: a model that has never seen one fails on it.

Each family is ``(rng, frames, size) -> float32 t 1 h w in {0, 1}``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np

from data.motion import bounded_walk
from ldm_video.core.checks import number
from ldm_video.core.errors import UserError

Mask = np.ndarray
Family = Callable[[np.random.Generator, int, tuple[int, int]], Mask]
_GLYPHS = "ABCDEFGHKLMNPRSTUVXYZ0123456789"


def sample_mask(
    rng: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    weights: Mapping[str, float],
    families: Mapping[str, Family] | None = None,
) -> Mask:
    """Draw a mask from a family, chosen in proportion to ``weights`` (family name -> weight).

    ``families`` defaults to :data:`FAMILIES`; ``size`` is (height, width). Returns ``t 1 h w`` float32 in {0, 1}.
    Raises ``UserError`` as :func:`check_weights` does.
    """
    families = FAMILIES if families is None else families
    check_weights(weights, families)
    names = sorted(weights)
    shares = np.array([weights[name] for name in names], float)
    return families[names[rng.choice(len(names), p=shares / shares.sum())]](rng, frames, size)


def check_weights(weights: Mapping[str, float], families: Mapping[str, Family] | None = None) -> None:
    """Raise ``UserError`` unless every name is a family and the weights are not negative, finite and not all 0."""
    families = FAMILIES if families is None else families
    if not isinstance(weights, Mapping):
        raise UserError(f"mask weights are {weights!r}; give a mapping of family to weight")
    unknown = sorted(map(str, set(weights) - set(families)))
    if unknown:
        hint = "; `object` needs a folder of masks, the data set's option `objects`" if "object" in unknown else ""
        raise UserError(f"unknown mask families {unknown}; use some of {sorted(families)}{hint}")
    for name, weight in weights.items():
        number(f"the weight of the mask family {name}", weight, 0, float("inf"))
    if not 0 < sum(weights.values()) < float("inf"):
        raise UserError("mask weights must not be negative and must have a positive sum")


def empty(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Return an empty mask: plain super-resolution."""
    return np.zeros((frames, 1, *size), np.float32)


def full(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Return a mask of everything: nothing is known."""
    return np.ones((frames, 1, *size), np.float32)


def blob(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw a closed Bezier outline of 2 to 25 % of the frame; half of them move, rotate and zoom."""
    outline = bezier_outline(rng) * _radius(size, rng.uniform(0.02, 0.25))
    return _draw_along(
        outline,
        frames,
        size,
        _moving_track(rng, frames, size) if rng.random() < 0.5 else _static_track(rng, frames, size),
    )


def moving_blob(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw a blob of 2 to 20 % of the frame that always moves."""
    outline = bezier_outline(rng) * _radius(size, rng.uniform(0.02, 0.2))
    return _draw_along(outline, frames, size, _moving_track(rng, frames, size))


def ellipse(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw an ellipse of 1 to 20 % of the frame, axis ratio up to 1 : 3; moves in half of the draws."""
    angle, aspect = np.linspace(0, 2 * np.pi, 64, endpoint=False), rng.uniform(1, 3) ** 0.5
    turn = rng.uniform(0, np.pi)
    circle = np.stack([np.cos(angle) * aspect, np.sin(angle) / aspect], -1)
    outline = circle @ _rotation(turn).T * _radius(size, rng.uniform(0.01, 0.2))
    return _draw_along(
        outline,
        frames,
        size,
        _moving_track(rng, frames, size) if rng.random() < 0.5 else _static_track(rng, frames, size),
    )


def box(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw an axis-aligned rectangle of 1 to 25 % of the frame, aspect up to 1 : 4; moves in half of the draws."""
    side = (size[0] * size[1] * rng.uniform(0.01, 0.25)) ** 0.5 / 2
    aspect = np.exp(rng.uniform(-np.log(4), np.log(4))) ** 0.5
    outline = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * [side * aspect, side / aspect]
    track = _moving_track(rng, frames, size) if rng.random() < 0.5 else _static_track(rng, frames, size)
    return _draw_along(outline, frames, size, (track[0], np.zeros(frames), np.ones(frames)))


def stroke(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw one to four brush strokes; they drift together in half of the draws."""
    short = min(size)
    thickness = max(1, round(short * rng.uniform(0.02, 0.08)))
    lines = []
    for _ in range(rng.integers(1, 5)):
        start = rng.uniform(0.1, 0.9, 2) * [size[1], size[0]]
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.6, rng.integers(3, 9)))
        steps = np.stack([np.cos(heading), np.sin(heading)], -1) * rng.uniform(0.05, 0.2) * short
        lines.append(start + np.concatenate([np.zeros((1, 2)), np.cumsum(steps, 0)]))
    drift = _moving_track(rng, frames, size)[0] if rng.random() < 0.5 else np.zeros((frames, 2))
    mask = np.zeros((frames, 1, *size), np.float32)
    for index in range(frames):
        points = [np.round(line + drift[index] - drift[0]).astype(np.int32) for line in lines]
        cv2.polylines(mask[index, 0], points, False, 1.0, thickness)
        for line in points:
            cv2.circle(mask[index, 0], tuple(map(int, line[0])), thickness // 2, 1.0, -1)
    return mask


def scratch(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw film scratches: one to four thin, nearly vertical lines, each with horizontal jitter and on some frames."""
    height, width = size
    mask = np.zeros((frames, 1, height, width), np.float32)
    for _ in range(rng.integers(1, 5)):
        x, lean = rng.uniform(0.05, 0.95) * width, rng.normal(0, 0.01) * height
        thickness = max(1, round(rng.uniform(0.004, 0.016) * min(size)))
        length = 1.0 if rng.random() < 0.6 else rng.uniform(0.2, 0.9)
        top = rng.uniform(0, 1 - length)
        shown = rng.random(frames) < rng.uniform(0.4, 1.0)
        shown[rng.integers(frames)] = True
        tremble = x + rng.normal(0, rng.uniform(0.2, 2.0), frames).clip(-4, 4)
        for index in np.flatnonzero(shown):
            start = (round(tremble[index]), round(top * height))
            end = (round(tremble[index] + lean), round((top + length) * height))
            cv2.line(mask[index, 0], start, end, 1.0, thickness)
    return mask


def dropout(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw tape dropouts: horizontal streaks, a few lines high, from lost tape coating; new in every frame."""
    height, width = size
    mask = np.zeros((frames, 1, height, width), np.float32)
    counts = rng.poisson(rng.uniform(0.5, 4.0), frames)
    counts[rng.integers(frames)] += 1
    thickest = max(1, round(0.025 * min(size)))
    for index, count in enumerate(counts):
        for _ in range(count):
            length = max(2, round(width * np.exp(rng.uniform(np.log(0.04), np.log(0.6)))))
            thickness = int(rng.integers(1, thickest + 1))
            top, left = int(rng.integers(height - thickness + 1)), int(rng.integers(-length // 2, width - length // 2))
            mask[index, 0, top : top + thickness, max(0, left) : left + length] = 1
    return mask


def flicker(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw a blob, box, ellipse, stroke or logo that is visible only on some frames."""
    steady = (blob, box, ellipse, stroke, logo)[rng.integers(5)](rng, frames, size)
    shown = np.zeros(frames, np.float32)
    shown[rng.permutation(frames)[: rng.integers(1, max(2, frames))]] = 1
    return steady * shown[:, None, None, None]


def logo(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw a static mark in a corner: two to six letters, or their plate.

    The text is at most half as wide and a fifth as high as the frame.
    """
    height, width = size
    text = "".join(rng.choice(list(_GLYPHS), rng.integers(2, 7)))
    thickness = max(1, round(rng.uniform(0.01, 0.03) * min(size)))
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_width, text_height), _ = cv2.getTextSize(text, font, 1.0, 1)
    scale = min(rng.uniform(0.2, 0.5) * width / text_width, rng.uniform(0.06, 0.2) * height / text_height)
    text_width, text_height = round(text_width * scale), round(text_height * scale)
    margin_y, margin_x = round(rng.uniform(0.02, 0.08) * height), round(rng.uniform(0.02, 0.08) * width)
    left = margin_x if rng.random() < 0.5 else width - margin_x - text_width
    base = margin_y + text_height if rng.random() < 0.5 else height - margin_y
    picture = np.zeros(size, np.uint8)
    if rng.random() < 0.6:
        cv2.putText(picture, text, (left, base), font, scale, 1, thickness)
        picture = cv2.dilate(picture, np.ones((3, 3), np.uint8), iterations=int(rng.integers(0, 2)))
    else:
        cv2.rectangle(picture, (left, base - text_height), (left + text_width, base), 1, -1)
    return np.broadcast_to(picture.astype(np.float32), (frames, 1, height, width)).copy()


def border(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Draw an outpainting mask: static bands along one to four sides, each 5 to 30 % of the frame's side wide."""
    mask = np.zeros((frames, 1, *size), np.float32)
    sides = rng.choice(4, rng.integers(1, 5), replace=False)
    for side in sides:
        band = max(1, round(size[side // 2] * rng.uniform(0.05, 0.3)))
        cut = slice(None, band) if side % 2 == 0 else slice(-band, None)
        mask[(..., cut, slice(None)) if side < 2 else (..., cut)] = 1
    return mask


def island(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Mask:
    """Mask everything but a blob of 2 to 60 % of the frame; it moves in half of the draws."""
    outline = bezier_outline(rng) * _radius(size, rng.uniform(0.02, 0.6))
    track = _moving_track(rng, frames, size) if rng.random() < 0.5 else _static_track(rng, frames, size)
    return 1 - _draw_along(outline, frames, size, track)


FAMILIES: dict[str, Family] = {
    "blob": blob,
    "moving_blob": moving_blob,
    "stroke": stroke,
    "box": box,
    "ellipse": ellipse,
    "scratch": scratch,
    "dropout": dropout,
    "flicker": flicker,
    "logo": logo,
    "border": border,
    "island": island,
    "full": full,
    "empty": empty,
}


def bezier_outline(rng: np.random.Generator) -> np.ndarray:
    """Draw a closed smooth outline around 0, of area pi: ``n 2`` (x, y).

    It consists of quadratic Bezier arcs through the midpoints of the sides of a star-shaped polygon.
    """
    corners, steps = 8, 8  # of the polygon, and points on each arc
    angle = (np.arange(corners) + rng.uniform(-0.4, 0.4, corners)) * 2 * np.pi / corners
    radius = rng.uniform(0.45, 1.3, corners)
    points = np.stack([np.cos(angle), np.sin(angle)], -1) * radius[:, None]
    before, after = (points + np.roll(points, 1, 0)) / 2, (points + np.roll(points, -1, 0)) / 2
    s = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    outline = ((1 - s) ** 2 * before + 2 * s * (1 - s) * points + s**2 * after).transpose(1, 0, 2).reshape(-1, 2)
    x, y = outline.T
    area = abs(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1))) / 2  # the shoelace formula
    return outline * (np.pi / area) ** 0.5


Track = tuple[np.ndarray, np.ndarray, np.ndarray]  # centre (t 2, x y), angle (t), zoom (t)


def _static_track(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Track:
    centre = rng.uniform(0.1, 0.9, 2) * [size[1], size[0]]
    return np.repeat(centre[None], frames, 0), np.zeros(frames), np.ones(frames)


def _moving_track(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> Track:
    """Draw a path inside the frame: 1 to 4 % of its short side per frame on average, with bounded acceleration."""
    centre = _static_track(rng, frames, size)[0]
    speed = min(size) * rng.uniform(0.01, 0.04)
    heading = rng.uniform(0, 2 * np.pi)
    steady = np.arange(frames)[:, None] * np.array([np.cos(heading), np.sin(heading)]) * speed
    walk = np.stack([bounded_walk(rng, frames, speed / 4, speed / 8) for _ in range(2)], -1)
    path = (
        centre + steady + walk,
        bounded_walk(rng, frames, 0.02, 0.01),
        np.exp(bounded_walk(rng, frames, 0.01, 0.005)),
    )
    return _reflect_inside(path, size)


def _reflect_inside(track: Track, size: tuple[int, int]) -> Track:
    """Reflect the centre at the edges of the frame."""
    span = np.array([size[1], size[0]])
    offset = np.mod(track[0], 2 * span)
    return np.minimum(offset, 2 * span - offset), track[1], track[2]


def _draw_along(outline: np.ndarray, frames: int, size: tuple[int, int], track: Track) -> Mask:
    """Draw the filled ``outline`` (n 2, x y) along a track."""
    mask = np.zeros((frames, 1, *size), np.float32)
    for index, (centre, angle, zoom) in enumerate(zip(*track, strict=True)):
        points = outline @ _rotation(angle).T * zoom + centre
        cv2.fillPoly(mask[index, 0], [np.round(points * 16).astype(np.int32)], 1.0, shift=4)
    return mask


def _rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _radius(size: tuple[int, int], area: float) -> float:
    """Return the radius in pixels of the circle that covers the fraction ``area`` of the frame."""
    return (size[0] * size[1] * area / np.pi) ** 0.5
