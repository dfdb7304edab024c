"""Guidance: functions that turn denoisers into a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Denoise = Callable[..., Tensor]
"""``denoise(x, timestep) -> output``: ``x`` and output ``b t c h w``, ``timestep`` the scheduler's, scalar or ``(b,)``.

A denoiser that runs on parts of a clip takes the part as a third argument, a
:class:`~ldm_video.diffusion.windows.Region`, which guidance passes through.
"""


def classifier_free_batched(
    denoise: Callable[..., Tensor], condition: Tensor, uncondition: Tensor, scale: float
) -> Denoise:
    """``u + scale (c - u)`` (arXiv:2207.12598; equation 6 with ``scale = 1 + w``), in one call with twice the batch.

    Args:
        denoise: ``denoise(x, timestep, condition, *region) -> output``, which is ``c`` or ``u`` depending on the
            condition.
        condition: ``b ...``, for example text embeddings.
        uncondition: of the same shape, for the unconditional half.
        scale: 1 disables guidance; the batch is then not doubled.
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
