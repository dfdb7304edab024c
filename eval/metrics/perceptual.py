"""Perceptual distances through the ``lpips`` and ``DISTS_pytorch`` packages, with a spatial form for regions.

LPIPS features of a frame are computed once and compared with several others: the reference at the same time (LPIPS),
the previous frame (tLPIPS).
"""

from __future__ import annotations

import math
from typing import Any

import lpips
import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from eval.metrics.backbones import dists_network, lpips_network

LpipsFeatures = list[Tensor]


@torch.no_grad()
def lpips_features(frame: np.ndarray, net: str = "alex", device: str = "cpu") -> LpipsFeatures:
    """Return unit-normalised activations of LPIPS's five layers for ``h w c`` in [0, 1], each ``1 c' h' w'``."""
    network: Any = lpips_network(net, device=device)
    pixels = to_batch(frame, device) * 2.0 - 1.0
    return [lpips.normalize_tensor(layer) for layer in network.net(network.scaling_layer(pixels))]


@torch.no_grad()
def lpips_between(
    first: LpipsFeatures, second: LpipsFeatures, net: str = "alex", region: np.ndarray | None = None
) -> float:
    """LPIPS v0.1 (Zhang et al. 2018, eq. 1) from :func:`lpips_features` of both frames.

    Without a region it equals ``lpips.LPIPS(net)(first, second)``. With a region ``h w`` it is the mean of the
    package's ``spatial=True`` map (each layer's map resized bilinearly to the frame) under these weights; NaN if the
    region is empty. Features near the region's border also depend on pixels beyond it.
    """
    network: Any = lpips_network(net, device=str(first[0].device))
    maps = [head((a - b) ** 2) for head, a, b in zip(network.lins, first, second, strict=True)]  # each 1 1 h' w'
    if region is None:
        return float(sum(layer.mean() for layer in maps))
    weights = torch.from_numpy(np.ascontiguousarray(region, dtype=np.float32)).to(first[0].device)
    if not weights.any():
        return math.nan
    resized = [F.interpolate(layer, size=weights.shape, mode="bilinear", align_corners=False) for layer in maps]
    full = torch.stack(resized).sum(dim=0)[0, 0]  # 5 1 1 h w -> h w
    return float((full * weights).sum() / weights.sum())


def lpips_distance(
    pred: np.ndarray, ref: np.ndarray, net: str = "alex", region: np.ndarray | None = None, device: str = "cpu"
) -> float:
    """LPIPS v0.1 between two frames ``h w c`` in [0, 1]; ``net`` is ``alex`` or ``vgg``. See :func:`lpips_between`."""
    return lpips_between(lpips_features(pred, net, device), lpips_features(ref, net, device), net, region)


@torch.no_grad()
def dists(pred: np.ndarray, ref: np.ndarray, device: str = "cpu", region: np.ndarray | None = None) -> float:
    """DISTS (Ding et al. 2020, eq. 9) between two frames ``h w c`` in [0, 1], at their own size.

    It compares global statistics of VGG16 features, so it has no spatial form and depends on the frame's size. With a
    region ``h w`` it is computed on the composite, as in inpainting papers: the reference outside the region. Such
    scores grow with the region's area, so they only compare methods on the same region. NaN if the region is empty.
    """
    if region is not None:
        if not region.any():
            return math.nan
        pred = np.where(region[..., None] > 0, pred, ref)
    network: nn.Module = dists_network(device=device)
    return float(network(to_batch(pred, device), to_batch(ref, device)))


def to_batch(frame: np.ndarray, device: str = "cpu") -> Tensor:
    """Convert ``h w c`` numpy to a ``1 c h w`` float32 tensor."""
    tensor = torch.from_numpy(np.ascontiguousarray(frame, dtype=np.float32)).to(device)
    return rearrange(tensor, "h w c -> 1 c h w")
