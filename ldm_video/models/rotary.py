"""Rotary positions: queries and keys are rotated by frame position, so attention depends on temporal distance only.

RoFormer, Su et al. 2021, arXiv:2104.09864, equation 34. The pairs of channels rotated together are ``(i, i + dim / 2)``
instead of the paper's ``(2i, 2i + 1)``: the same map up to a fixed order of the (learned) channels, and contiguous in
memory.
"""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_angles(frames: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return the angles ``m * 10000^(-2i / dim)`` in radians for positions ``m = 0 .. frames - 1``.

    Float32 of shape ``(frames, dim / 2)``; ``dim`` must be even.
    """
    positions = torch.arange(frames, device=device, dtype=torch.float32)
    exponents = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    return torch.outer(positions, 10000.0**-exponents)


def apply_rotary(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate ``x`` of shape ``(..., frames, dim)`` by ``angles`` of shape ``(frames, dim / 2)``; keep the dtype."""
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
