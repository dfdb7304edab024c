"""Paint for the hole, like a logo's colour, dust, noise or a caption in a recording; applied before degrading."""

from __future__ import annotations

import cv2
import numpy as np


def paint_hole(clip: np.ndarray, hole: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Replace the pixels in the hole by paint, so that a degraded copy reveals nothing of the original.

    Args:
        clip: ``t h w c`` uint8.
        hole: ``t h w`` in {0, 1}.

    Returns a new ``t h w c`` uint8 that equals ``clip`` where the hole is 0 and is independent of it elsewhere.
    """
    paint = _PAINTS[rng.integers(len(_PAINTS))](clip.shape, rng)
    return np.where(hole[..., None] > 0, paint, clip)


def flat(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint one colour; black, white or grey in half of the draws, like captions and scratches."""
    if rng.random() < 0.5:
        return np.full((1, 1, 1, shape[-1]), rng.choice([0, 128, 255]), np.uint8)
    return rng.integers(0, 256, (1, 1, 1, shape[-1]), np.uint8)


def noise(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint white noise, new in every frame."""
    return rng.integers(0, 256, shape, np.uint8)


def checker(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint a checkerboard of two colours."""
    side = int(rng.integers(2, 17))
    rows, columns = np.arange(shape[1])[:, None] // side, np.arange(shape[2])[None] // side
    two = rng.integers(0, 256, (2, shape[-1]), np.uint8)
    return two[(rows + columns) % 2][None]


def text(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Paint lines of letters on a uniform background."""
    ground, ink = rng.integers(0, 256, (2, shape[-1])).tolist()
    picture = np.empty(shape[1:], np.uint8)
    picture[:] = ground
    scale = float(rng.uniform(0.3, 1.0))
    step = max(8, round(30 * scale))
    for base in range(step, shape[1] + step, step):
        letters = "".join(map(chr, rng.integers(65, 91, 40)))
        cv2.putText(picture, letters, (-int(rng.integers(20)), base), cv2.FONT_HERSHEY_SIMPLEX, scale, ink, 1)
    return picture[None]


_PAINTS = (flat, flat, noise, checker, text)
