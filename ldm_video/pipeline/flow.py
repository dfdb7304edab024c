"""Optical flow of a clip with a hole: measured outside the hole, completed inside it.

Flow measured under a hole is meaningless. There, a camera motion model, fitted robustly around the hole, is
extrapolated, plus the deviation of the trusted vectors from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from ldm_video.motion.search import fine_flow
from ldm_video.motion.warp import at, positions

_MARGIN = 4  # pixels around a hole where the filled hole may distort the flow
_MAX_PIXELS = 90_000  # pixels; larger frames are halved, for speed and because texture depends on scale
_TEXTURE = 2e-3  # smaller eigenvalue of the structure tensor at which a vector is half trusted; grey in [0, 1]
_TEXTURE_BLOCK = 7  # pixels
_CONSISTENCY_SCALE = 0.5  # forward-backward error in pixels at which a vector's trust has fallen to 1/e
_FALLOFF = 0.1  # distance from the hole, as a fraction of the frame's long side, at which a vector's weight is 1/e
_OUTLIER = 0.5  # pixels: scale of the robust fit
_FIT_POINTS = 6_000
_FIT_ROUNDS = 8
_STATIC = 0.9  # support of zero motion, as a fraction of the fitted motion's, above which the camera is static
_TRUST_GROWTH = 1.5  # growth of a cell's trust per pyramid level; 4 would be a plain sum
_MIN_MATCHED = 0.15  # fraction of the texture to be matched: on real clips over 0.5, across their cuts under 0.03
_MIN_MEAN_TRUST = 0.04  # mean trust near the hole below which nothing there indicates a motion


@dataclass(frozen=True)
class FlowPair:
    """Flow between a frame and the next, in both directions: each ``h w 2``, dx and dy in pixels."""

    forward: np.ndarray
    backward: np.ndarray


def clip_flows(grey: Sequence[np.ndarray], holes: Sequence[np.ndarray]) -> list[FlowPair | None]:
    """Return the completed flow between adjacent frames, one entry fewer than frames.

    Args:
        grey: frames ``h w`` uint8, with something smooth in their holes.
        holes: ``h w`` bool.

    An entry is None where hardly anything of one frame is matched in the other, as across a cut.
    """
    size = grey[0].shape
    grey, holes = [_shrink(frame) for frame in grey], [_shrink(hole.astype(np.uint8) * 255) > 0 for hole in holes]
    views = [_view(frame, hole) for frame, hole in zip(grey, holes, strict=True)]
    flows: list[FlowPair | None] = []
    for t in range(len(grey) - 1):
        there, back = fine_flow(grey[t], grey[t + 1]), fine_flow(grey[t + 1], grey[t])
        forward = _complete(there, back, views[t], views[t + 1])
        backward = _complete(back, there, views[t + 1], views[t])
        if forward is None or backward is None:
            flows.append(None)
        else:
            flows.append(FlowPair(_enlarge(forward, size), _enlarge(backward, size)))
    return flows


def _shrink(image: np.ndarray) -> np.ndarray:
    """Halve ``h w`` uint8 until it is small enough to search."""
    while image.size > _MAX_PIXELS:
        image = cv2.resize(image, ((image.shape[1] + 1) // 2, (image.shape[0] + 1) // 2), interpolation=cv2.INTER_AREA)
    return image


def _enlarge(flow: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resample flow ``h w 2`` to the grid of ``size`` (height, width), in its pixels."""
    if flow.shape[:2] == size:
        return flow
    scale = np.array([size[1] / flow.shape[1], size[0] / flow.shape[0]], np.float32)
    return cv2.resize(flow, size[::-1], interpolation=cv2.INTER_LINEAR) * scale


@dataclass(frozen=True)
class _View:
    """Reliability of a frame's vectors, each ``h w``.

    ``texture`` in [0, 1], 0 under the dilated hole; ``grown`` in {0, 1}, the dilated hole; ``proximity`` in [0, 1], 1
    at the hole.
    """

    texture: np.ndarray
    grown: np.ndarray
    proximity: np.ndarray


def _view(grey: np.ndarray, hole: np.ndarray) -> _View:
    corner = np.maximum(cv2.cornerMinEigenVal(grey.astype(np.float32) / 255, _TEXTURE_BLOCK, ksize=3), 0)
    grown = grow(hole, _MARGIN).astype(np.float32)
    distance = cv2.distanceTransform((~hole).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5)
    return _View(corner / (corner + _TEXTURE) * (1 - grown), grown, np.exp(-distance / (_FALLOFF * max(hole.shape))))


def _complete(flow: np.ndarray, back: np.ndarray, here: _View, there: _View) -> np.ndarray | None:
    """Replace untrusted vectors of ``flow`` ``h w 2`` by the camera motion plus nearby vectors' deviation from it.

    Returns None where hardly anything is matched.
    """
    target = positions(flow)
    error = _squared_norm(flow + at(back, target))
    height, width = here.texture.shape
    inside = (
        (target[..., 0] >= 0) & (target[..., 0] <= width - 1) & (target[..., 1] >= 0) & (target[..., 1] <= height - 1)
    )
    trust = here.texture * np.exp(-error / _CONSISTENCY_SCALE**2) * inside * (at(there.grown, target) == 0)
    if trust.sum() < _MIN_MATCHED * here.texture.sum():
        return None
    if (trust * here.proximity).sum() < _MIN_MEAN_TRUST * ((1 - here.grown) * here.proximity).sum():
        return np.zeros_like(flow)
    model = fit_camera(flow, trust * here.proximity)
    return model + spread(flow - model, trust.astype(np.float32))


def fit_camera(flow: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Fit a quadratic flow ``h w 2`` (a plane, a zoom, a rotation) to ``flow``, weighted by ``weight`` ``h w``.

    Least squares with Geman-McClure weights whose scale shrinks from round to round (Black & Anandan 1996): a minority
    that moves differently does not count. Zero if there are too few points to fit, or if zero motion fits about as
    well.
    """
    height, width = weight.shape
    y, x = np.mgrid[:height, :width].astype(np.float32)
    x, y = x / width - 0.5, y / height - 0.5
    basis = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)  # h w 6
    step = max(1, int(np.sqrt(height * width / _FIT_POINTS)))
    a, v, w = (k[::step, ::step] for k in (basis, flow, weight))
    used = w > 1e-4
    a, v, w = a[used].astype(np.float64), v[used].astype(np.float64), w[used].astype(np.float64)  # n 6, n 2, n
    if len(w) < 2 * a.shape[1]:
        return np.zeros_like(flow)
    robust, scale = w, 8 * _OUTLIER
    solution = np.zeros((a.shape[1], 2))
    for _ in range(_FIT_ROUNDS):
        normal = a.T @ (a * robust[:, None]) + 1e-9 * np.eye(a.shape[1])
        solution = np.linalg.solve(normal, a.T @ (v * robust[:, None]))
        robust = w / (1 + _squared_norm(v - a @ solution) / scale**2) ** 2
        scale = max(scale / 2, _OUTLIER)
    if _support(v, w) > _STATIC * _support(v - a @ solution, w):
        return np.zeros_like(flow)
    return (basis @ solution).astype(np.float32)


def _support(residual: np.ndarray, weight: np.ndarray) -> float:
    return float((weight / (1 + _squared_norm(residual) / _OUTLIER**2)).sum())


def spread(values: np.ndarray, trust: np.ndarray) -> np.ndarray:
    """Propagate ``values`` ``h w c`` from where ``trust`` ``h w`` in [0, 1] is high to where it is low.

    A pyramid of trust-weighted averages (Gortler et al. 1996, section 3). Values far from any trusted one fall to 0.
    """
    height, width = trust.shape
    if min(height, width) <= 2:
        total = float(trust.sum())
        mean = (values * trust[..., None]).sum((0, 1)) / max(total, 1e-6)
        return values * trust[..., None] + mean * (1 - trust[..., None]) * min(1.0, total)
    size = ((width + 1) // 2, (height + 1) // 2)
    mass = cv2.resize(trust, size, interpolation=cv2.INTER_AREA)
    mean = cv2.resize(values * trust[..., None], size, interpolation=cv2.INTER_AREA).reshape(*mass.shape, -1)
    coarse = spread(mean / np.maximum(mass, 1e-6)[..., None], np.minimum(1, _TRUST_GROWTH * mass))
    smooth = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR).reshape(values.shape)
    return values * trust[..., None] + smooth * (1 - trust[..., None])


def grow(mask: np.ndarray, radius: int) -> np.ndarray:
    """Dilate ``h w`` bool by ``radius`` pixels (a square)."""
    return cv2.dilate(mask.astype(np.uint8), np.ones((2 * radius + 1,) * 2, np.uint8)) > 0


def _squared_norm(vectors: np.ndarray) -> np.ndarray:
    return np.square(vectors).sum(axis=-1)
