"""Gaussian noise for clips.

During sampling, a frame's noise depends only on the seed and the frame number in the clip: not on the batch, the
window, the processing order or the number of processes. Frames may share a part of their noise, which makes generated
content more alike from frame to frame (PYoCo's mixed noise, arXiv:2305.10474; its ``alpha`` corresponds to ``shared =
alpha^2 / (1 + alpha^2)``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_SEEDS = 1 << 32


def frame_noise(
    seed: int,
    frames: Sequence[int],
    shape: tuple[int, int, int],
    shared: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Return unit-variance noise for the given frames, ``t c h w``.

    Args:
        seed: of the clip.
        frames: absolute frame numbers, in any order; may repeat.
        shape: ``(c, h, w)`` of one frame.
        shared: correlation in [0, 1) between any two frames: ``sqrt(shared) * common + sqrt(1 - shared) * own``.
        device: of the result. The noise is drawn on the CPU in float32, so its values do not depend on the device.
        dtype: of the result.

    Raises:
        ValueError: ``shared`` is out of range.
    """
    _check_shared(shared)
    # The generator keeps 32 bits of a seed. Hashing (seed, frame) into them could let two frames of a long clip collide
    # (a chance of 1 in 100 at 10,000 frames); adding an odd multiple to the clip's hash never repeats within a clip.
    base = _hash(f"frames of {seed}")
    own = torch.stack([_draw((base + 0x9E3779B1 * frame) % _SEEDS, shape) for frame in frames])  # t c h w
    if shared:
        common = _draw(_hash(f"common part of {seed}"), shape)  # c h w
        own = _mix(common, own, shared)
    return own.to(device=device, dtype=dtype)


def batch_noise(shape: Sequence[int], generator: torch.Generator, shared: float = 0.0) -> Tensor:
    """Return noise for training clips, ``b t c h w`` float32, distributed as :func:`frame_noise`.

    Frames of one clip share a part; clips of a batch are independent. The result is on the generator's device.

    Raises:
        ValueError: ``shared`` is out of range.
    """
    _check_shared(shared)
    b, t, c, h, w = shape
    own = torch.randn((b, t, c, h, w), generator=generator, device=generator.device)
    if not shared:
        return own
    common = torch.randn((b, 1, c, h, w), generator=generator, device=generator.device)
    return _mix(common, own, shared)


def _mix(common: Tensor, own: Tensor, shared: float) -> Tensor:
    return math.sqrt(shared) * common + math.sqrt(1.0 - shared) * own


def _draw(seed: int, shape: tuple[int, int, int]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")


def _check_shared(shared: float) -> None:
    if not 0.0 <= shared < 1.0:
        raise ValueError(f"shared must be in [0, 1), got {shared}")
