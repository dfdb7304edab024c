"""Synthetic camera motion over photographs: clips with exact geometry and sharp texture."""

from __future__ import annotations

import cv2
import numpy as np


def bounded_walk(rng: np.random.Generator, frames: int, speed: float, acceleration: float) -> np.ndarray:
    """Draw a smooth path that starts at 0: ``t`` float64, with ``t`` = ``frames``.

    The velocity is drawn from N(0, speed), changes by N(0, acceleration) per frame and is clipped to 3 ``speed``.
    """
    velocity = rng.normal(0, speed) + np.cumsum(rng.normal(0, acceleration, frames))
    path = np.cumsum(np.clip(velocity, -3 * speed, 3 * speed))
    return path - path[0]


def camera_path(rng: np.random.Generator, frames: int, size: tuple[int, int]) -> dict[str, np.ndarray]:
    """Draw a camera path: ``x``, ``y`` in output pixels, ``zoom`` as a factor, ``angle`` in radians, each ``t``.

    ``x`` and ``y`` start at 0, ``zoom`` at 1 and ``angle`` within 0.1 of 0. The pan is usually up to 4 % of the short
    side per frame; half of the clips add hand-held shake.
    """
    side = min(size)
    pan = side * rng.uniform(0, 0.02)
    shake = side * (rng.uniform(0, 0.006) if rng.random() < 0.5 else 0.0)
    return {
        "x": bounded_walk(rng, frames, pan, pan / 8) + bounded_walk(rng, frames, shake, shake),
        "y": bounded_walk(rng, frames, pan, pan / 8) + bounded_walk(rng, frames, shake, shake),
        "zoom": np.exp(bounded_walk(rng, frames, rng.uniform(0, 0.012), 0.001)),
        "angle": bounded_walk(rng, frames, rng.uniform(0, 0.008), 0.001) + rng.uniform(-0.1, 0.1),
    }


def photo_clip(photo: np.ndarray, frames: int, size: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Film a photograph with a moving camera that never leaves it.

    Args:
        photo: ``h w c`` uint8.
        frames: number of frames.
        size: (height, width) of the clip.

    Returns ``t h w c`` uint8. The photo is magnified beyond one photo pixel per output pixel only if it is too small
    for the motion.
    """
    path = camera_path(rng, frames, size)
    corners = _corners(path, size)  # t 4 2, in output pixels around the camera's start
    low, high = corners.min((0, 1)), corners.max((0, 1))  # x y
    extent = np.maximum(high - low, 1e-6)
    available = np.array([photo.shape[1] - 1, photo.shape[0] - 1], dtype=float)
    largest = float((available / extent).min())  # photo pixels per output pixel; beyond, the camera leaves it
    scale = min(largest, float(np.exp(rng.uniform(0, np.log(max(1.0, min(largest, 2.5)))))))
    origin = rng.uniform(0, 1, 2) * (available - extent * scale) - low * scale
    # Antialias only the part that the camera sees; the warp then samples at nearly 1 : 1.
    left, top = np.floor(origin + low * scale).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(origin + high * scale).astype(int) + 1, [photo.shape[1], photo.shape[0]])
    view = np.ascontiguousarray(photo[top:bottom, left:right])
    shrunk = cv2.resize(view, _shrunk_size(view, scale), interpolation=cv2.INTER_AREA) if scale > 1 else view
    ratio = np.array([shrunk.shape[1] / view.shape[1], shrunk.shape[0] / view.shape[0]])
    clip = np.empty((frames, *size, photo.shape[2]), np.uint8)
    flags = cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP
    for index, frame in enumerate(clip):
        target = ((corners[index, :3] * scale + origin - [left, top]) + 0.5) * ratio - 0.5  # pixel centres
        source = np.array([[0, 0], [size[1] - 1, 0], [0, size[0] - 1]], np.float32)
        matrix = cv2.getAffineTransform(source, target.astype(np.float32))  # output -> photo
        frame[...] = cv2.warpAffine(shrunk, matrix, size[::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return clip


def _corners(path: dict[str, np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """Return the frame's corner pixels (x, y) in the photo plane, before scale and origin: ``t 4 2``."""
    half = np.array([(size[1] - 1) / 2, (size[0] - 1) / 2])
    corners = np.array([[-1, -1], [1, -1], [-1, 1], [1, 1]]) * half  # 4 2
    cosine, sine = np.cos(path["angle"]), np.sin(path["angle"])
    rotation = np.stack([cosine, -sine, sine, cosine], -1).reshape(-1, 2, 2)  # t 2 2
    turned = np.einsum("tij,nj->tni", rotation / path["zoom"][:, None, None], corners)  # t 4 2
    return turned + np.stack([path["x"], path["y"]], -1)[:, None]


def _shrunk_size(view: np.ndarray, scale: float) -> tuple[int, int]:
    return max(1, round(view.shape[1] / scale)), max(1, round(view.shape[0] / scale))
