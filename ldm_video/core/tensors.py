"""Small tensor rearrangements shared by all modules."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

CPU_PIXELS = 2**20  # pixels processed at once, see `frames_at_once`


def size_of(x: Tensor) -> tuple[int, int]:
    """Height and width of ``... h w``."""
    return x.shape[-2], x.shape[-1]


def fold_time(x: Tensor) -> Tensor:
    """``b t c h w -> (b t) c h w``: frames become batch entries, for 2-D layers."""
    return rearrange(x, "b t c h w -> (b t) c h w")


def unfold_time(x: Tensor, frames: int) -> Tensor:
    """``(b t) c h w -> b t c h w``: the inverse of :func:`fold_time`."""
    return rearrange(x, "(b t) c h w -> b t c h w", t=frames)


def to_signed(pixels: Tensor) -> Tensor:
    """uint8 0..255 -> float32 [-1, 1]."""
    return pixels.to(torch.float32).div_(127.5).sub_(1.0)


def to_bytes(pixels: Tensor) -> Tensor:
    """float [-1, 1] -> uint8 0..255, rounded to nearest and clipped."""
    return pixels.float().add(1.0).mul(127.5).round().clamp(0, 255).to(torch.uint8)


def frames_at_once(clip: Tensor) -> int:
    """Return how many frames of a clip ``b t c H W`` to process at a time, where frames are independent.

    On a CPU about a megapixel, which fits into its cache; on a GPU, which large batches use better, all frames.
    """
    if clip.device.type != "cpu":
        return clip.shape[0] * clip.shape[1]
    return max(1, CPU_PIXELS // (clip.shape[-2] * clip.shape[-1]))
