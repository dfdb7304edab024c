"""The device that a name stands for."""

from __future__ import annotations

import torch

from ldm_video.core.errors import UserError


def find_device(name: str) -> torch.device:
    """``cpu``, ``cuda``, ``cuda:1`` or, with ``auto``, CUDA where there is one.

    Raises ``UserError`` for a device that cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(f"unknown device '{name}'; use auto, cpu, cuda or cuda:0") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError("no CUDA device was found; use --device cpu")
    try:
        torch.empty(1, device=device).cpu()
    except torch.OutOfMemoryError:
        raise UserError(f"the memory of device '{name}' is full; use another, or end what fills it") from None
    except (RuntimeError, AssertionError, ImportError) as error:  # a number too high, or a backend that is not here
        raise UserError(f"device '{name}' cannot be used with this machine's torch; use auto, cpu or cuda") from error
    return device
