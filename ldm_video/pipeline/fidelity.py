"""Fidelity to the input: add back the residual between the low-res frames and the downsampled output."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.evidence import resize
from ldm_video.core.tensors import size_of
from ldm_video.pipeline.composite import dilate

_KERNEL = 2  # low-res pixels that the bicubic kernel reaches on each side


def back_project(output: Tensor, lowres: Tensor, hidden: Tensor, share: float) -> Tensor:
    """Perform one step of iterative back-projection (Irani & Peleg 1991).

    Args:
        output: ``b t 3 H W`` in [-1, 1].
        lowres: ``b t 3 h w`` in [-1, 1], as given: the residual contains its noise and compression artefacts, which is
            why ``share`` is small.
        hidden: ``b t 1 h w`` in {0, 1}; 1 = hole, where nothing is added.
        share: fraction of the residual (input minus downsampled output) that is added back; 0 changes nothing, 1 makes
            the output agree with the input as far as one step does.

    Returns ``b t 3 H W``, not clamped.
    """
    if share == 0:
        return output
    seen = 1 - dilate(hidden, _KERNEL)
    off = (lowres - resize(output, size_of(lowres))) * seen  # b t 3 h w
    size = size_of(output)
    return output + share * F.interpolate(off.flatten(0, 1), size, mode="bicubic").unflatten(0, off.shape[:2])
