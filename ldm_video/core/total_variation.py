"""A hole filled with the least total variation: edges that its rim cuts off go on through it.

What is smooth goes on smoothly: small gradients count squared (Huber's function), as in a membrane; large ones count as
they are, so that one sharp edge costs no more than a wide ramp, and the shortest way between two ends of an edge is
straight (Chan & Shen 2002, "Mathematical models for local nontexture inpaintings"). Minimised by the first-order
primal-dual method of Chambolle & Pock 2011 (algorithm 1; the dual step of Huber's function is their section 6.2.3),
from coarse to fine.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

_SMALL = 0.1  # gradient, of colours in [-1, 1], from which it counts as an edge
_STEP = 8**-0.5  # of both players: the norm of the gradient is at most the root of 8
_ROUNDS = (100, 60)  # on the coarsest grid, on each finer one
_NARROW = 8  # pixels across a hole that the rounds cross: wider ones begin on a coarser grid


def continue_edges(picture: Tensor, known: Tensor) -> Tensor:
    """Fill where ``known`` is 0.

    Args:
        picture: ``n c h w`` in [-1, 1].
        known: ``n 1 h w`` in {0, 1}; where it is 1 the result equals ``picture``.

    A frame with no known pixel at all becomes 0 (mid-grey).
    """
    rows, columns = ((known < 1).any(dim=0)[0].any(dim=side) for side in (1, 0))
    if not bool(rows.any()):
        return picture
    window = (..., _span(rows), _span(columns))
    part, seen = picture[window].float(), known[window].float()
    filled = picture.clone()
    filled[window] = torch.where(seen > 0, part, _fill(part, seen)).to(picture)
    return filled


def _span(touched: Tensor) -> slice:
    """From the first to the last that is touched, and one more at each side: what is filled from."""
    there = touched.nonzero()[:, 0]
    return slice(max(int(there[0]) - 1, 0), int(there[-1]) + 2)


def _fill(picture: Tensor, known: Tensor) -> Tensor:
    if _widest(known) <= _NARROW or min(picture.shape[-2:]) < 2:
        mass = known.sum(dim=(2, 3), keepdim=True)
        mean = (picture * known).sum(dim=(2, 3), keepdim=True) / mass.clamp(min=1)  # n c 1 1
        return _minimise(torch.where(known > 0, picture, mean), known, _ROUNDS[0])
    mass = F.avg_pool2d(known, 2, ceil_mode=True)  # n 1 h/2 w/2
    mean = F.avg_pool2d(picture * known, 2, ceil_mode=True) / mass.clamp(min=1e-6)
    coarse = _fill(mean, (mass > 0).to(known))  # n c h/2 w/2
    start = F.interpolate(coarse, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    return _minimise(torch.where(known > 0, picture, start), known, _ROUNDS[1])


def _widest(known: Tensor) -> float:
    """Pixels across the widest part of any frame's hole ``n 1 h w``; beyond the frame nothing is known."""
    holes = np.pad((known[:, 0] == 0).byte().cpu().numpy(), ((0, 0), (1, 1), (1, 1)), mode="edge")
    return max(2 * float(cv2.distanceTransform(hole, cv2.DIST_L2, cv2.DIST_MASK_5).max()) for hole in holes)


def _minimise(picture: Tensor, known: Tensor, rounds: int) -> Tensor:
    """``n c h w`` -> the same, changed where ``known`` is 0; the channels of a pixel share their edges."""
    hole = 1 - known
    dual = torch.zeros(2, *picture.shape).to(picture)  # along x and y
    ahead = picture
    for _ in range(rounds):
        dual = (dual + _STEP * _gradient(ahead)) / (1 + _STEP * _SMALL)
        dual = dual / dual.square().sum(dim=(0, 2), keepdim=True)[0].sqrt().clamp(min=1)
        moved = picture + _STEP * hole * _divergence(dual)
        picture, ahead = moved, 2 * moved - picture
    return picture


def _gradient(x: Tensor) -> Tensor:
    """``n c h w -> 2 n c h w``: differences to the next pixel along x and y, zero at the last."""
    across = F.pad(x.diff(dim=-1), (0, 1))
    return torch.stack([across, F.pad(x.diff(dim=-2), (0, 0, 0, 1))])


def _divergence(dual: Tensor) -> Tensor:
    """``2 n c h w -> n c h w``, the negative adjoint of :func:`_gradient`."""
    across, down = dual[0][..., :-1], dual[1][..., :-1, :]
    return F.pad(across, (0, 1)) - F.pad(across, (1, 0)) + F.pad(down, (0, 0, 0, 1)) - F.pad(down, (0, 0, 1, 0))
