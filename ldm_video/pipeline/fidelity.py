"""Faithful to the input: what an output, brought back down, is off the low-res frames is given back."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.evidence import resize
from ldm_video.core.tensors import size_of
from ldm_video.pipeline.composite import dilate

_KERNEL = 2  # low-res pixels that the bicubic kernel reaches to each side


def back_project(output: Tensor, lowres: Tensor, hidden: Tensor, share: float) -> Tensor:
    """One step of iterative back-projection (Irani & Peleg 1991).

    Args:
        output: ``b t 3 H W`` in [-1, 1].
        lowres: ``b t 3 h w`` in [-1, 1], as it was given: noise and compression come back with the rest, which is why
            ``share`` is small.
        hidden: ``b t 1 h w`` in {0, 1}; 1 = hole, which gives nothing back.
        share: of the difference; 0 changes nothing, 1 makes the output agree with the input as far as one step does.
    """
    if share == 0:
        return output
    seen = 1 - dilate(hidden, _KERNEL)
    off = (lowres - resize(output, size_of(lowres))) * seen  # b t 3 h w
    size = size_of(output)
    return output + share * F.interpolate(off.flatten(0, 1), size, mode="bicubic").unflatten(0, off.shape[:2])
