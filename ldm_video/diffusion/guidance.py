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


def classifier_free_batched(
    denoise: Callable[..., Tensor], condition: Tensor, uncondition: Tensor, scale: float
) -> Denoise:
    """``u + scale (c - u)`` (arXiv:2207.12598; equation 6 with ``scale = 1 + w``), in one call of twice the batch.

    Args:
        denoise: ``denoise(x, timestep, condition, *region) -> output``: ``c`` or ``u``, by its condition.
        condition: ``b ...``, for example text embeddings.
        uncondition: of the same shape, for the unconditional half.
        scale: 1 is no guidance; the batch is then not doubled.
    """

    def guided(x: Tensor, timestep: Tensor | float, *region: Any) -> Tensor:
        if scale == 1.0:
            return denoise(x, timestep, condition, *region)
        if isinstance(timestep, Tensor) and timestep.ndim:
            timestep = timestep.repeat(2)
        both = denoise(torch.cat([x, x]), timestep, torch.cat([condition, uncondition]), *region)  # (2 b) t c h w
        positive, negative = both.chunk(2)  # (2 b) t c h w -> b t c h w, b t c h w
        return negative + scale * (positive - negative)

    return guided
