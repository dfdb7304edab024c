"""Look up a torch device by name."""

from __future__ import annotations

import torch

from ldm_video.core.errors import UserError


def find_device(name: str) -> torch.device:
    """Return the device called ``cpu``, ``cuda``, ``cuda:1`` or ``auto`` (CUDA if available, otherwise the CPU).

    Raises ``UserError`` if the device is unknown, unavailable or out of memory.
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
    except (RuntimeError, AssertionError, ImportError) as error:  # index out of range, or backend not available
        raise UserError(f"device '{name}' cannot be used with this machine's torch; use auto, cpu or cuda") from error
    return device
