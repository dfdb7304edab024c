"""Temporal metrics as published, each for one pair of frames: the term that is averaged over a clip.

:mod:`eval.scoring` computes them for every frame t but the last, in a region of frame t; a clip of one frame has none.

Blurred video minimises every warp error: report the reference's and bicubic's values next to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from eval.metrics.flow import FlowEstimator, backward_warp, valid_pixels
from eval.metrics.perceptual import LpipsFeatures, lpips_between

EWARP_LAI_UNIT = 1e-2  # printed as "x1e-2"
EWARP_EVALCRAFTER_UNIT = 1e-3  # printed as "x1e-3"
TLPIPS_FACTOR = 1000.0


def ewarp_lai_pair(
    frame: np.ndarray,
    following: np.ndarray,
    forward: np.ndarray,
    valid: np.ndarray,
    region: np.ndarray | None = None,
) -> float:
    """Warping error of Lai et al. 2018 (fast_blind_video_consistency, ``evaluate_WarpError.py``), frames ``h w c``.

    Mean over valid pixels and channels of ``(warp(following) - frame)^2``: frame t+1 of the output warped back to t
    along ``forward``, the flow t -> t+1 of the *reference* frames. ``valid``, also of the reference, excludes
    occlusions and motion boundaries (:func:`eval.metrics.flow.valid_pixels`). NaN if no pixel (of ``region``, ``h w``)
    is valid: Lai's code counts 0 there, which rewards a flow that matched nothing.
    """
    warped, _ = backward_warp(following, forward)
    counted = valid if region is None else valid & (region > 0)
    if not counted.any():
        return math.nan
    return float(((warped - frame)[counted].astype(np.float64) ** 2).mean())


@dataclass(frozen=True)
class HalfSizeMatch:
    """Warp error of two consecutive output frames at half size, and the valid pixels of the first, both ``h/2 w/2``."""

    error: np.ndarray
    valid: np.ndarray


def ewarp_evalcrafter_match(frame: np.ndarray, following: np.ndarray, flow: FlowEstimator) -> HalfSizeMatch:
    """Return the input of :func:`ewarp_evalcrafter_pair`: squared error summed over channels, and valid pixels."""
    frame, following = half_size(frame), half_size(following)
    forward, backward = flow(frame, following), flow(following, frame)
    warped, _ = backward_warp(following, forward)
    error = ((warped - frame).astype(np.float64) ** 2).sum(axis=-1)
    return HalfSizeMatch(error, valid_pixels(forward, backward))


def ewarp_evalcrafter_pair(match: HalfSizeMatch, region: np.ndarray | None = None) -> float:
    """E*_warp of EvalCrafter (Liu et al. 2024), used by STAR and DOVE: no reference. NaN if nothing is valid.

    Flow (RAFT in the papers) on the output itself, frames at half size, squared error summed over the three channels
    and divided by the number of valid pixels, hence three times the per-channel mean. Its script
    (``metrics/RAFT/optical_flow_scores.py``) feeds RAFT pixels in [0, 1]; here the flow gets the range it expects.

    ``region``: ``h w`` at full size; a half-size pixel counts if any of its four full-size pixels does.
    """
    valid = match.valid if region is None else match.valid & (half_size(region.astype(np.float32)) > 0)
    return float(match.error[valid].mean()) if valid.any() else math.nan


def tof_pair(
    frame: np.ndarray,
    following: np.ndarray,
    ref_flow: np.ndarray,
    flow: FlowEstimator,
    region: np.ndarray | None = None,
) -> float:
    """tOF of TecoGAN (Chu et al. 2020, eq. 6; ``metrics.py``): mean L2 norm of ``flow(out) - flow(ref)``, in pixels.

    Farneback (0.5, 3, 15, 3, 5, 1.2, 0) on grey frames in TecoGAN, which also crops to multiples of 32 and drops the
    first two frames; here every pixel of every frame counts. NaN for an empty region ``h w``.
    """
    distance = np.linalg.norm(flow(frame, following).astype(np.float64) - ref_flow, axis=-1)
    if region is None:
        return float(distance.mean())
    return float(distance[region > 0].mean()) if (region > 0).any() else math.nan


def tlpips_pair(
    pred: tuple[LpipsFeatures, LpipsFeatures],
    ref: tuple[LpipsFeatures, LpipsFeatures],
    net: str = "alex",
    region: np.ndarray | None = None,
) -> float:
    """tLP of TecoGAN (Chu et al. 2020, eq. 6): 1000 x ``|LPIPS(out_t, out_t+1) - LPIPS(ref_t, ref_t+1)|``.

    ``pred``, ``ref``: the LPIPS features of (frame t, frame t+1) of each clip.
    """
    difference = lpips_between(*pred, net, region) - lpips_between(*ref, net, region)
    return TLPIPS_FACTOR * abs(difference)


def temporal_flickering_pair(frame: np.ndarray, following: np.ndarray, region: np.ndarray | None = None) -> float:
    """VBench's temporal flickering (Huang et al. 2024, ``temporal_flickering.py``): ``(255 - MAE) / 255``.

    That is ``1 - mean |following - frame|`` of frames ``h w c`` in [0, 1]; higher is better. Meant for static scenes
    only, since motion counts as flicker. NaN for an empty region ``h w``.
    """
    change = np.abs(following.astype(np.float64) - frame)  # h w c
    if region is None:
        return 1.0 - float(change.mean())
    return 1.0 - float(change[region > 0].mean()) if (region > 0).any() else math.nan


def half_size(frame: np.ndarray) -> np.ndarray:
    """Downscale ``h w c`` to ``h/2 w/2 c``, OpenCV's bilinear (at exactly one half, the mean of four pixels)."""
    return cv2.resize(frame, (frame.shape[1] // 2, frame.shape[0] // 2), interpolation=cv2.INTER_LINEAR)
