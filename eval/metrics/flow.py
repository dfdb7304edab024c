"""Optical flow for the temporal metrics: estimators, backward warping, occlusion and motion boundaries."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from eval.metrics.backbones import MetricUnavailable
from eval.metrics.perceptual import to_batch

# OpenCV splits a search among its threads, and the split changes the result: scores would depend on the number of
# cores.
cv2.setNumThreads(1)


class FlowEstimator(Protocol):
    """Estimates flow ``h w 2`` (dx, dy) between frames ``h w c`` in [0, 1]. ``name`` is part of the metric's name."""

    name: str

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray: ...


class DisFlow:
    """Dense inverse search (Kroeger et al. 2016), OpenCV's MEDIUM preset, on 8-bit grey. Needs no weights."""

    name = "dis"

    def __init__(self) -> None:
        self._estimator = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return self._estimator.calc(grey(first), grey(second), None)


class FarnebackFlow:
    """Farneback (2003) with TecoGAN's arguments (``metrics.py``): 0.5, 3, 15, 3, 5, 1.2, 0, on 8-bit grey."""

    name = "farneback"

    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return cv2.calcOpticalFlowFarneback(grey(first), grey(second), None, 0.5, 3, 15, 3, 5, 1.2, 0)


class RaftFlow:
    """RAFT (Teed & Deng 2020), torchvision's ``raft_large`` or ``raft_small``, weights from a local file.

    Args:
        path: a torchvision state dict (``raft_large_*.pth`` or ``raft_small_*.pth``), read as tensors only.
        updates: refinement steps; EvalCrafter and STAR use 20.
    """

    name = "raft"
    _min_side = 128  # smallest side for which the correlation pyramid does not vanish

    def __init__(self, path: str | Path, device: str = "cpu", updates: int = 20) -> None:
        self._network = _raft(str(path), device)
        self._device, self._updates = device, updates

    @torch.no_grad()
    def __call__(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        height, width = first.shape[:2]
        bottom, right = (max(self._min_side, -(-n // 8) * 8) - n for n in (height, width))
        pair = [
            F.pad(to_batch(x, self._device) * 2 - 1, (0, right, 0, bottom), mode="replicate") for x in (first, second)
        ]
        flow = self._network(*pair, num_flow_updates=self._updates)[-1][0, :, :height, :width]
        return flow.permute(1, 2, 0).cpu().numpy()  # 2 h w -> h w 2


@lru_cache(maxsize=2)
def _raft(path: str, device: str) -> torch.nn.Module:
    from torchvision.models.optical_flow import raft_large, raft_small

    if not Path(path).is_file():
        raise MetricUnavailable(f"no RAFT weights at {path}; give torchvision's raft_large or raft_small .pth file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise MetricUnavailable(f"{path} is not a file of torch tensors; give torchvision's RAFT weights") from error
    for build in (raft_large, raft_small):
        network = build(weights=None)
        shapes = {key: value.shape for key, value in network.state_dict().items()}
        if {key: getattr(value, "shape", None) for key, value in state.items()} == shapes:
            network.load_state_dict(state, strict=True)
            return network.eval().requires_grad_(False).to(device)
    raise MetricUnavailable(f"{path} holds neither torchvision's raft_large nor raft_small")


def grey(frame: np.ndarray) -> np.ndarray:
    """Convert ``h w c`` in [0, 1] to ``h w`` uint8, BT.601 full-range luma (OpenCV's RGB2GRAY)."""
    return cv2.cvtColor(np.round(np.clip(frame, 0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)


def backward_warp(image: np.ndarray, flow: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Warp ``image`` backward along ``flow``: ``out[p] = image[p + flow[p]]``, bilinear.

    Args:
        image: ``h w c``, float.
        flow: ``h w 2`` in pixels.

    Returns the warped image ``h w c`` (border values repeated) and ``h w`` bool, true where ``p + flow[p]`` lies
    inside the frame.
    """
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    x, y = columns + flow[..., 0], rows + flow[..., 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    # cv2.remap rounds positions to 1/32 pixel; grid_sample does not
    grid = np.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], axis=-1)
    warped = F.grid_sample(
        to_batch(image), torch.from_numpy(grid)[None], mode="bilinear", padding_mode="border", align_corners=True
    )
    return warped[0].permute(1, 2, 0).numpy(), inside  # c h w -> h w c


def occluded(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Forward-backward check (Sundaram et al. 2010, as in Lai et al. 2018): ``h w`` bool in the first frame.

    Occluded where ``|f + w(b)|^2 > 0.01 (|f|^2 + |w(b)|^2) + 0.5``; ``w(b)`` is the backward flow warped by the
    forward.
    """
    warped, _ = backward_warp(backward, forward)
    return _norm2(forward + warped) > 0.01 * (_norm2(forward) + _norm2(warped)) + 0.5


def motion_boundary(flow: np.ndarray) -> np.ndarray:
    """Return motion boundaries, ``h w`` bool (Lai et al. 2018): ``|grad u|^2 + |grad v|^2 > 0.01 |f|^2 + 0.002``.

    Forward differences, 0 at the last row and column.
    """
    gradient = np.zeros(flow.shape[:2], dtype=np.float64)
    gradient[:, :-1] += _norm2(np.diff(flow, axis=1))
    gradient[:-1, :] += _norm2(np.diff(flow, axis=0))
    return gradient > 0.01 * _norm2(flow) + 0.002


def valid_pixels(forward: np.ndarray, backward: np.ndarray) -> np.ndarray:
    """Return ``h w`` bool in the first frame: not occluded, no motion boundary, and matched inside the second frame.

    The last condition is ours: outside, Lai's CUDA warp repeats the border and EvalCrafter's reads zeros, so both
    compare a pixel with something that is not its match.
    """
    _, inside = backward_warp(backward, forward)
    return inside & ~occluded(forward, backward) & ~motion_boundary(forward)


def _norm2(vectors: np.ndarray) -> np.ndarray:
    return (vectors.astype(np.float64) ** 2).sum(axis=-1)
