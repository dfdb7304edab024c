"""Choose a model's device, dtype and attention kernel."""

from __future__ import annotations

import torch

from ldm_video.core.device import find_device
from ldm_video.core.errors import UserError
from ldm_video.models.video_model import VideoModel

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def place(model: VideoModel, device: str = "auto", dtype: str = "auto", attention: str = "auto") -> VideoModel:
    """Move ``model`` to its device and dtype.

    A dtype of ``auto`` is bfloat16 where the device computes in it, otherwise float32. The codec stays in float32 with
    ``fp16``. Weights get the channels-last memory format.

    Raises ``UserError`` for an unknown dtype or attention, an unusable device, and a model that does not fit into its
    memory.
    """
    where = find_device(device)
    if dtype == "auto":
        dtype = "bf16" if where.type == "cuda" or (where.type == "cpu" and computes_bf16()) else "fp32"
    if dtype not in DTYPES:
        raise UserError(f"unknown dtype '{dtype}'; use auto, {', '.join(DTYPES)}")
    model.denoiser.set_attention(attention)
    try:
        for name, part in model.named_children():
            # The x4-upscaler's decoder overflows in float16; its weights must not be rounded to it in between.
            exact = name == "codec" and dtype == "fp16"
            part.to(device=where, dtype=torch.float32 if exact else DTYPES[dtype])
    except torch.OutOfMemoryError:
        raise UserError(f"the model does not fit into what is free on {where}; use another --device, or bf16") from None
    return model.to(memory_format=torch.channels_last)


def computes_bf16() -> bool:
    """Return whether this CPU has instructions for bfloat16 products, which are then about twice as fast as float32.

    On others torch emulates them, slower than float32. A torch version that cannot tell counts as False.
    """
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16"))
