"""Gaussian noise for clips.

At sampling, a frame's noise depends on the seed and the frame's own number in the clip, on nothing else: not on the
batch, the window, the order of work or the number of processes. Frames may share a part of their noise, which makes
what the denoiser invents alike from frame to frame (PYoCo's mixed noise, arXiv:2305.10474; its ``alpha`` gives
``shared = alpha^2 / (1 + alpha^2)``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 1 << 32


def frame_noise(
    seed: int,
    frames: Sequence[int],
    shape: tuple[int, int, int],
    shared: float = 0.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Unit-variance noise of the given frames, ``t c h w``.

    Args:
        seed: of the clip.
        frames: absolute frame numbers, in any order, repeated at will.
        shape: ``(c, h, w)`` of one frame.
        shared: correlation in [0, 1) between any two frames: ``sqrt(shared) * common + sqrt(1 - shared) * own``.

    The draw is made on the CPU in float32, so the device does not change it.
    """
    _check_shared(shared)
    # The generator keeps 32 bits of a seed. Hashing (seed, frame) into them would let two frames of a long clip meet
    # (a chance of 1 in 100 at 10,000 frames); an odd multiplier on top of the clip's hash never repeats in a clip.
    base = _hash(f"frames of {seed}")
    own = torch.stack([_draw((base + 0x9E3779B1 * frame) % _WORD, shape) for frame in frames])  # t c h w
    if shared:
        common = _draw(_hash(f"common part of {seed}"), shape)  # c h w
        own = _mix(common, own, shared)
    return own.to(device=device, dtype=dtype)


def batch_noise(shape: Sequence[int], generator: torch.Generator, shared: float = 0.0) -> Tensor:
    """Noise for training clips, ``b t c h w`` float32, distributed as :func:`frame_noise`, on the generator's device.

    Frames of one clip share a part; clips of a batch are independent.
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
