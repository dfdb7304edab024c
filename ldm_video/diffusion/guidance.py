"""Guidance: functions from denoisers to a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoise = Callable[..., Tensor]
"""``denoise(x, timestep) -> output``: ``x`` and output ``b t c h w``, ``timestep`` a scalar or ``(b,)`` as schedulers
hand it out. A denoiser that runs on parts of a clip takes the part as a third argument, see
:class:`~ldm_video.diffusion.windows.Region`; guidance hands it on untouched."""


def classifier_free(conditional: Denoise, unconditional: Denoise, scale: float, rescale: float = 0.0) -> Denoise:
    """``u + scale (c - u)`` (arXiv:2207.12598; equation 6 with ``scale = 1 + w``).

    Args:
        conditional: gives ``c``.
        unconditional: gives ``u``; never called at scale 1.
        scale: 1 is no guidance.
        rescale: in [0, 1], how far the output's standard deviation is brought back to that of ``c``
            (arXiv:2305.08891, equations 15 and 16), per sample over all axes. It is taken over what the denoiser is
            given, so guidance inside windows rescales each window by itself.
    """
    _check(rescale)
    if scale == 1.0:
        return conditional

    def guided(x: Tensor, timestep: Tensor | float, *region: Any) -> Tensor:
        return _combine(conditional(x, timestep, *region), unconditional(x, timestep, *region), scale, rescale)

    return guided


def classifier_free_batched(
    denoise: Callable[..., Tensor], condition: Tensor, uncondition: Tensor, scale: float, rescale: float = 0.0
) -> Denoise:
    """:func:`classifier_free` in one call of twice the batch.

    Args:
        denoise: ``denoise(x, timestep, condition, *region) -> output``.
        condition: ``b ...``, for example text embeddings.
        uncondition: of the same shape, for the unconditional half.
        scale: as in :func:`classifier_free`; at 1 the batch is not doubled.
        rescale: as in :func:`classifier_free`.
    """
    _check(rescale)

    def guided(x: Tensor, timestep: Tensor | float, *region: Any) -> Tensor:
        if scale == 1.0:
            return denoise(x, timestep, condition, *region)
        if isinstance(timestep, Tensor) and timestep.ndim:
            timestep = timestep.repeat(2)
        both = denoise(torch.cat([x, x]), timestep, torch.cat([condition, uncondition]), *region)  # (2 b) t c h w
        positive, negative = both.chunk(2)  # (2 b) t c h w -> b t c h w, b t c h w
        return _combine(positive, negative, scale, rescale)

    return guided


def _combine(conditional: Tensor, unconditional: Tensor, scale: float, rescale: float) -> Tensor:
    guided = unconditional + scale * (conditional - unconditional)
    if rescale:
        axes = tuple(range(1, guided.ndim))
        least = max(1e-8, torch.finfo(guided.dtype).tiny)  # 1e-8 alone is 0 in float16
        ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True).clamp(min=least)
        guided = guided * (rescale * ratio + (1.0 - rescale))
    return guided


def _check(rescale: float) -> None:
    if not 0.0 <= rescale <= 1.0:
        raise ValueError(f"rescale must be in [0, 1], got {rescale}")
