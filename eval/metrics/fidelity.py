"""Pixel fidelity: PSNR and SSIM, in RGB or BT.601 luma, whole or inside a region."""

from __future__ import annotations

import math
from collections.abc import Callable

import cv2
import numpy as np

PSNR_CEILING = 100.0  # dB for identical pictures, so that means and intervals stay finite
_C1, _C2 = 0.01**2, 0.03**2  # Wang et al. 2004, K1 = 0.01, K2 = 0.03, range 1
_GAUSSIAN_SIDE, _GAUSSIAN_SIGMA = 11, 1.5
INPAINTING_WINDOW = 65


def luma(frame: np.ndarray) -> np.ndarray:
    """Convert ``... 3`` in [0, 1] to BT.601 limited-range luma ``...`` in [16, 235] / 255, as in MATLAB's rgb2ycbcr."""
    weights = np.array([65.481, 128.553, 24.966], dtype=np.float64) / 255.0
    return (frame @ weights + 16.0 / 255.0).astype(np.float32)


def psnr(pred: np.ndarray, ref: np.ndarray, region: np.ndarray | None = None) -> float:
    """Return the peak signal-to-noise ratio in dB for range 1, over all pixels and channels.

    Args:
        pred, ref: ``h w c`` or ``h w`` in [0, 1].
        region: ``h w`` weights, or None for everywhere.

    Returns at most :data:`PSNR_CEILING`; NaN if the region is empty.
    """
    error = _over_channels((pred.astype(np.float64) - ref) ** 2)
    mse = weighted_mean(error, region)
    if math.isnan(mse):
        return math.nan
    return PSNR_CEILING if mse == 0 else min(PSNR_CEILING, -10.0 * math.log10(mse))


def ssim(pred: np.ndarray, ref: np.ndarray, region: np.ndarray | None = None) -> float:
    """Return the SSIM (Wang et al. 2004): Gaussian window 11x11, sigma 1.5, mean over channels and complete windows.

    Equals ``skimage.metrics.structural_similarity(gaussian_weights=True, use_sample_covariance=False, data_range=1)``.
    Only windows that lie inside the frame are counted. NaN if the region contains none of their centres.
    """
    similarity = ssim_map(pred, ref)
    return _interior_mean(similarity, region, _GAUSSIAN_SIDE // 2)


def ssim_window65(pred: np.ndarray, ref: np.ndarray, region: np.ndarray | None = None) -> float:
    """Return the SSIM that inpainting papers report: uniform 65x65 window, sample covariance, on composited frames.

    Equals ``structural_similarity(win_size=65)`` of scikit-image, as called by STTN, E2FGVI and ProPainter
    (``core/metrics.py:calc_psnr_and_ssim``). They resize to 432x240 first; here the frame keeps its size.
    Raises ``ValueError`` for frames smaller than the window.
    """
    side = INPAINTING_WINDOW
    if min(pred.shape[:2]) < side:
        raise ValueError(f"frames of {pred.shape[0]}x{pred.shape[1]} are smaller than the {side}x{side} window")
    count = side * side

    def window_mean(x: np.ndarray) -> np.ndarray:
        return cv2.blur(x, (side, side), borderType=cv2.BORDER_REFLECT)

    similarity = _similarity(pred, ref, window_mean, covariance_scale=count / (count - 1))
    return _interior_mean(similarity, region, side // 2)


def ssim_map(pred: np.ndarray, ref: np.ndarray) -> np.ndarray:
    """Return the SSIM of the Gaussian window around each pixel: ``h w c`` or ``h w``, borders mirrored."""

    def window_mean(x: np.ndarray) -> np.ndarray:
        side = (_GAUSSIAN_SIDE, _GAUSSIAN_SIDE)
        return cv2.GaussianBlur(x, side, _GAUSSIAN_SIGMA, borderType=cv2.BORDER_REFLECT)

    return _similarity(pred, ref, window_mean, covariance_scale=1.0)


def weighted_mean(values: np.ndarray, region: np.ndarray | None) -> float:
    """Return the mean of ``h w`` values under ``h w`` weights; NaN if the weights sum to zero."""
    if region is None:
        return float(values.mean(dtype=np.float64))
    weights = region.astype(np.float64)
    total = weights.sum()
    return float((values * weights).sum() / total) if total > 0 else math.nan


def _similarity(
    pred: np.ndarray, ref: np.ndarray, window_mean: Callable[[np.ndarray], np.ndarray], covariance_scale: float
) -> np.ndarray:
    x, y = pred.astype(np.float64), ref.astype(np.float64)
    mean_x, mean_y = window_mean(x), window_mean(y)
    var_x = covariance_scale * (window_mean(x * x) - mean_x**2)
    var_y = covariance_scale * (window_mean(y * y) - mean_y**2)
    covariance = covariance_scale * (window_mean(x * y) - mean_x * mean_y)
    structure = (2 * covariance + _C2) / (var_x + var_y + _C2)
    return (2 * mean_x * mean_y + _C1) / (mean_x**2 + mean_y**2 + _C1) * structure


def _interior_mean(similarity: np.ndarray, region: np.ndarray | None, border: int) -> float:
    inner = (slice(border, similarity.shape[0] - border), slice(border, similarity.shape[1] - border))
    return weighted_mean(_over_channels(similarity)[inner], None if region is None else region[inner])


def _over_channels(values: np.ndarray) -> np.ndarray:
    return values.mean(axis=-1) if values.ndim == 3 else values
