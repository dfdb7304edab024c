"""Temporal layers: attention over frames with rotary positions, and a 3x1x1 convolution; both start at zero."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, XFormersAttnProcessor
from einops import rearrange
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.models.rotary import apply_rotary, rotary_angles

# Every pixel is a batch entry here, and CUDA attention kernels put the batch on a grid axis of at most 65535.
_MAX_BATCH = 65535


@dataclass(frozen=True)
class TemporalConfig:
    """Which temporal layers a model gets. Level 0 is the highest resolution.

    Attributes:
        head_dim: target width of an attention head; a layer with ``c`` channels has ``max(1, c // head_dim)`` heads.
        kernel: odd number of frames that the temporal convolution spans.
        attention_levels: levels with temporal attention; ``None`` for all, ``()`` for none.
        conv_levels: likewise for the temporal convolution.
        heads: heads of every layer regardless of width (8 in AnimateDiff); ``None`` derives them from ``head_dim``.

    Raises ``UserError`` for values out of range.
    """

    head_dim: int = 32
    kernel: int = 3
    attention_levels: tuple[int, ...] | None = None
    conv_levels: tuple[int, ...] | None = None
    heads: int | None = None

    def __post_init__(self) -> None:
        if self.head_dim < 2:
            raise UserError(f"temporal head_dim is {self.head_dim}; give 2 or more")
        if self.heads is not None and self.heads < 1:
            raise UserError(f"temporal heads is {self.heads}; give 1 or more, or null")
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"temporal kernel is {self.kernel}; give an odd number of frames")
        for name in ("attention_levels", "conv_levels"):  # JSON and YAML have only lists
            levels = getattr(self, name)
            object.__setattr__(self, name, None if levels is None else tuple(levels))

    def has_attention(self, level: int) -> bool:
        return self.attention_levels is None or level in self.attention_levels

    def heads_of(self, channels: int) -> int:
        """Return the number of heads for ``channels``. Raises ``UserError`` if they do not split into even widths."""
        if self.heads is None:
            return head_count(channels, self.head_dim)
        if channels % self.heads or (channels // self.heads) % 2:
            raise UserError(f"{channels} channels do not split into {self.heads} temporal heads of one even width")
        return self.heads

    def has_conv(self, level: int) -> bool:
        return self.conv_levels is None or level in self.conv_levels


def head_count(channels: int, head_dim: int) -> int:
    """Return the number of heads for ``channels``. Raises ``UserError`` if they do not split into equal even widths."""
    heads = max(1, channels // head_dim)
    if channels % heads or (channels // heads) % 2:
        raise UserError(
            f"{channels} channels do not split into {heads} attention heads of one even width; "
            f"choose an even temporal head_dim that divides {channels} (it is {head_dim})"
        )
    return heads


class RotaryProcessor:
    """Processor for diffusers' ``Attention``: self-attention with rotary positions."""

    def __init__(self, xformers: bool = False) -> None:
        self.xformers = xformers

    def __call__(self, attn: Attention, hidden_states: Tensor, **_: object) -> Tensor:
        """``n t c -> n t c``."""
        query, key, value = (
            rearrange(project(hidden_states), "n t (heads d) -> n heads t d", heads=attn.heads)
            for project in (attn.to_q, attn.to_k, attn.to_v)
        )
        angles = rotary_angles(query.shape[-2], query.shape[-1], query.device)
        query, key = apply_rotary(query, angles), apply_rotary(key, angles)
        attend = _attend_xformers if self.xformers else F.scaled_dot_product_attention
        batches = zip(*(x.split(_MAX_BATCH) for x in (query, key, value)), strict=True)
        mixed = rearrange(torch.cat([attend(*batch) for batch in batches]), "n heads t d -> n t (heads d)")
        return attn.to_out[1](attn.to_out[0](mixed))


def _attend_xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    from xformers.ops import memory_efficient_attention  # optional: compatible with few torch builds

    query, key, value = (x.transpose(1, 2) for x in (query, key, value))  # n heads t d -> n t heads d
    return memory_efficient_attention(query, key, value).transpose(1, 2)


class RotaryAttention(Attention):
    """Diffusers' ``Attention`` over frames, which keeps rotary positions with any attention kernel.

    Diffusers' model-wide switches (``set_attn_processor``, ``enable_xformers_memory_efficient_attention``) replace the
    processor of every ``Attention``; here they only select the kernel.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__(channels, heads=heads, dim_head=channels // heads, processor=RotaryProcessor())

    def set_processor(self, processor: object) -> None:
        if not isinstance(processor, RotaryProcessor):
            processor = RotaryProcessor(xformers=isinstance(processor, XFormersAttnProcessor))
        super().set_processor(processor)


class FrameConv(nn.Linear):
    """Convolution along time, ``b t ... c -> b t ... c``; the first and last frames are repeated as padding.

    Computed as a sum of one matrix product per tap: with time as an outer axis, a tap is a contiguous piece of memory.
    On a CPU this is faster than ``nn.Conv1d``, and than ``nn.Conv3d`` in float32. ``weight`` is ``(c, kernel * c)``,
    earliest frame first.
    """

    def __init__(self, channels: int, kernel: int) -> None:
        super().__init__(kernel * channels, channels)
        self.kernel = kernel

    def forward(self, x: Tensor) -> Tensor:
        frames, channels, radius = x.shape[1], x.shape[-1], self.kernel // 2
        padded = torch.cat([x[:, :1]] * radius + [x] + [x[:, -1:]] * radius, dim=1)  # b (t + 2 radius) ... c
        total: Tensor = self.bias
        for first, weight in enumerate(self.weight.split(channels, dim=1)):
            tap = padded[:, first : first + frames].reshape(-1, channels)  # (b t ...) c
            total = torch.addmm(total, tap, weight.T)
        return total.view(x.shape)


class TemporalBlock(nn.Module):
    """``x + attention(norm(x))``, then ``x + conv(silu(norm(x)))``, over the frames of each pixel.

    The last linear map of both branches starts at zero, so a new block returns its input bit for bit.
    """

    def __init__(self, channels: int, config: TemporalConfig, attention: bool = True, conv: bool = True) -> None:
        super().__init__()
        self.attention = self.conv = None
        if attention:
            self.attention_norm = nn.LayerNorm(channels)
            self.attention = RotaryAttention(channels, config.heads_of(channels))
        if conv:
            self.conv_norm = nn.LayerNorm(channels)
            self.conv = FrameConv(channels, config.kernel)
        for layer in self.output_layers():
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def output_layers(self) -> list[nn.Module]:
        """Return the layers that write to the residual stream; they are zero in a new block."""
        outputs = [] if self.attention is None else [self.attention.to_out[0]]
        return outputs if self.conv is None else [*outputs, self.conv]

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """``(b t) c h w -> (b t) c h w`` with ``t = frames``."""
        height, width = x.shape[-2:]
        # Add to x itself, to keep its memory layout and thus the convolution kernels chosen for it.
        if self.attention is not None:
            pixels = rearrange(x, "(b t) c h w -> (b h w) t c", t=frames).contiguous()  # each pixel is a sequence
            change = self.attention(self.attention_norm(pixels))
            x = x + rearrange(change, "(b h w) t c -> (b t) c h w", h=height, w=width)
        if self.conv is not None:
            clips = rearrange(x, "(b t) c h w -> b t h w c", t=frames)  # no copy in channels-last format
            change = self.conv(F.silu(self.conv_norm(clips)))
            x = x + rearrange(change, "b t h w c -> (b t) c h w")
        return x
