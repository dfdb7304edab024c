"""Fill a hole with minimal total variation, so that edges cut off at its rim continue through it.

Smooth regions continue smoothly: small gradients are penalised quadratically (Huber loss), as in a membrane. Large
gradients are penalised linearly, so that one sharp edge costs no more than a wide ramp and two ends of an edge are
joined by a straight line (Chan & Shen 2002, "Mathematical models for local nontexture inpaintings"). Minimised coarse
to fine with the first-order primal-dual method of Chambolle & Pock 2011 (algorithm 1; the dual step for the Huber loss
is their section 6.2.3).

Only hole pixels and their neighbours are processed, for a fixed number of iterations: the result for a hole does not
depend on what else is filled at the same time, and many small holes are cheap.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_HUBER_THRESHOLD = 0.1  # gradient, for colours in [-1, 1], above which the loss is linear
_STEP = 8**-0.5  # primal and dual step: the norm of the gradient operator is at most sqrt(8)
_ITERATIONS = 60  # per pyramid level


def continue_edges(picture: Tensor, known: Tensor) -> Tensor:
    """Fill where ``known`` is 0.

    Args:
        picture: ``n c h w`` in [-1, 1].
        known: ``n 1 h w`` in {0, 1}; where it is 1 the result equals ``picture``.

    Returns:
        ``n c h w`` in [-1, 1]. A frame with no known pixel becomes 0 (mid-grey).
    """
    known = known.expand(len(picture), *known.shape[1:]).float().contiguous()
    filled = _fill(picture.float() * known, known).clamp(-1, 1)  # the iterations may overshoot a little
    return torch.where(known > 0, picture, filled.to(picture))


def _fill(picture: Tensor, known: Tensor) -> Tensor:
    if bool((known > 0).all()) or picture.shape[-2:] == (1, 1):
        return picture
    mass = F.avg_pool2d(known, 2, ceil_mode=True)  # n 1 h/2 w/2
    mean = F.avg_pool2d(picture * known, 2, ceil_mode=True) / mass.clamp(min=1e-6)
    coarse = _fill(mean, (mass > 0).to(known))  # n c h/2 w/2
    start = F.interpolate(coarse, size=picture.shape[-2:], mode="bilinear", align_corners=False)
    return _minimise(torch.where(known > 0, picture, start), known[:, 0] == 0)


def _minimise(picture: Tensor, hole: Tensor) -> Tensor:
    """Update ``n c h w`` in the hole ``n h w``. The channels of a pixel share one gradient norm, and so their edges."""
    across, down = F.pad(hole[..., 1:], (0, 1)), F.pad(hole[..., 1:, :], (0, 0, 0, 1))  # is the next pixel in the hole?
    touched = hole | across | down  # pixels whose forward gradient involves the hole
    active, inside = touched.flatten().nonzero()[:, 0], hole.flatten().nonzero()[:, 0]  # m, k: flat indices into n h w
    row = torch.full((hole.numel(),), -1, device=hole.device)  # row in `active`; -1: the last gradient, 0
    row[active] = torch.arange(len(active), device=hole.device)
    after = torch.stack([_neighbour(active, hole, axis, 1) for axis in (2, 1)], dim=1)  # m 2: along x and y
    own, left, above = (row[i] for i in (inside, *(_neighbour(inside, hole, axis, -1) for axis in (2, 1))))  # k each
    left, above = left.where(left != own, -1), above.where(above != own, -1)
    extrapolated = picture.movedim(1, -1).flatten(0, 2).contiguous()  # (n h w) c
    primal = extrapolated[inside]  # k c
    dual = extrapolated.new_zeros(len(active) + 1, 2, extrapolated.shape[1])  # m+1 2 c: along x and y
    for _ in range(_ITERATIONS):
        gradient = extrapolated[after] - extrapolated[active, None]  # m 2 c
        ascent = (dual[:-1] + _STEP * gradient) / (1 + _STEP * _HUBER_THRESHOLD)
        dual[:-1] = ascent / ascent.square().sum(dim=(1, 2), keepdim=True).sqrt().clamp(min=1)
        divergence = dual[own].sum(1) - dual[left, 0] - dual[above, 1]  # k c
        updated = primal + _STEP * divergence
        extrapolated[inside], primal = 2 * updated - primal, updated
    extrapolated[inside] = primal
    return extrapolated.unflatten(0, hole.shape).movedim(-1, 1)


def _neighbour(pixels: Tensor, frames: Tensor, axis: int, step: int) -> Tensor:
    """Flat indices of the neighbours of ``pixels`` in ``frames`` ``n h w``; the pixel itself at the border."""
    side, stride = frames.shape[axis], frames.shape[axis + 1 :].numel()
    place = pixels // stride % side
    return pixels + stride * ((place + step).clamp(0, side - 1) - place)
