"""Turn any diffusers ``UNet2DConditionModel`` into a video model, with temporal layers after each spatial block.

Diffusers' own forward code runs unchanged. The last spatial layer of each block's (resnet, attention) pairs is replaced
by :class:`WithTemporal`, which runs it and then a :class:`~ldm_video.models.temporal.TemporalBlock`. Unlike a forward
hook, a wrapper shows in ``print(model)``, owns its parameters, and survives ``deepcopy``.

State dict keys of a :class:`VideoUNet`, with ``P`` the path of a wrapped layer such as ``down_blocks.0.resnets.1``:

===========================  ============================================
``unet.P.spatial.REST``      is ``P.REST`` in the diffusers model
``unet.P.temporal.REST``     temporal, no counterpart
``unet.REST``                is ``REST`` in the diffusers model
===========================  ============================================
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import asdict
from itertools import zip_longest
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from einops import rearrange, repeat
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm_video.core.errors import UserError
from ldm_video.core.tensors import fold_time, unfold_time
from ldm_video.models.temporal import TemporalBlock, TemporalConfig

# Diffusers' blocks pass no extra arguments to their layers, so the number of frames is passed in a context variable.
# It is read in the forward pass only (never while a checkpoint is recomputed), and each thread has its own.
_FRAMES: ContextVar[int] = ContextVar("frames")


class WithTemporal(nn.Module):
    """A spatial layer followed by a temporal block, with the call signature of the spatial layer."""

    def __init__(self, spatial: nn.Module, temporal: TemporalBlock) -> None:
        super().__init__()
        self.spatial = spatial
        self.temporal = temporal
        self.gradient_checkpointing = False  # set by diffusers' switch on every module that has it

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Same as the spatial layer: ``(b t) c h w``, or a tuple that starts with it (``return_dict=False``)."""
        return self.mix(self.spatial(hidden_states, *args, **kwargs))

    def mix(self, spatial_output: Any) -> Any:
        """Run the temporal block on the output of the spatial layer."""
        if isinstance(spatial_output, tuple):
            return (self.mix(spatial_output[0]), *spatial_output[1:])
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(self.temporal, spatial_output, _FRAMES.get(), use_reentrant=False)
        return self.temporal(spatial_output, _FRAMES.get())


def _checkpointed(module: nn.Module, *args: Any) -> Any:
    """Called by diffusers' blocks instead of ``module(*args)`` when gradient checkpointing is on.

    Non-reentrant: the reentrant variant gives no gradient to a layer whose inputs are all frozen. The two halves of a
    :class:`WithTemporal` are checkpointed separately, so that a recomputation uses the frame count of its own call.
    """
    if isinstance(module, WithTemporal):
        return module.mix(_checkpointed(module.spatial, *args))
    return checkpoint(module, *args, use_reentrant=False)


class VideoUNet(nn.Module):
    """An inflated UNet; see :func:`inflate`. Rebuild it with ``VideoUNet.from_config(model.config)``."""

    def __init__(self, unet: UNet2DConditionModel, temporal_config: TemporalConfig) -> None:
        super().__init__()
        self.unet = unet
        self.temporal_config = temporal_config
        self._attention = "sdpa"

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> VideoUNet:
        """Build a model with new weights from :attr:`config`, also after a round trip through JSON or YAML."""
        return inflate(UNet2DConditionModel.from_config(dict(config["unet"])), TemporalConfig(**config["temporal"]))

    @property
    def config(self) -> dict[str, Any]:
        """Plain JSON data: ``{"unet": diffusers config, "temporal": TemporalConfig}``."""
        return json.loads(json.dumps({"unet": dict(self.unet.config), "temporal": asdict(self.temporal_config)}))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        encoder_hidden_states: Tensor | None = None,
        class_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise all frames of a clip together.

        Args:
            sample: ``b t c h w``, any ``t >= 1``.
            timestep: a number, or ``(b,)``.
            encoder_hidden_states: text, ``(b, n, d)`` for the clip or ``(b, t, n, d)`` for each frame.
            class_labels: ``(b,)``, for models with class embeddings (the noise level of the SD x4-upscaler).

        Returns:
            ``b t c h w`` with the UNet's ``out_channels``.

        Raises ``UserError`` if a UNet with cross-attention gets no text.
        """
        frames = sample.shape[1]
        if encoder_hidden_states is None and self._needs_text:
            raise UserError("this model attends to text and was given none; pass encoder_hidden_states")
        token = _FRAMES.set(frames)
        try:
            output = self.unet(
                fold_time(sample),  # b t c h w -> (b t) c h w
                _per_frame(timestep, frames),
                encoder_hidden_states=_text_per_frame(encoder_hidden_states, frames),
                class_labels=_per_frame(class_labels, frames),
                return_dict=False,
            )[0]
        finally:
            _FRAMES.reset(token)
        return unfold_time(output, frames)  # (b t) c h w -> b t c h w

    @property
    def _needs_text(self) -> bool:
        blocks = [*self.unet.down_blocks, self.unet.mid_block, *self.unet.up_blocks]
        return any(getattr(block, "has_cross_attention", False) for block in blocks)

    def spatial_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters of the 2-D UNet."""
        return (parameter for name, parameter in self.named_parameters() if not _is_temporal(name))

    def temporal_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that :func:`inflate` added."""
        return (parameter for name, parameter in self.named_parameters() if _is_temporal(name))

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations in the backward pass: less memory for about a third more time. Non-reentrant."""
        self.unet.enable_gradient_checkpointing(_checkpointed)

    def disable_gradient_checkpointing(self) -> None:
        self.unet.disable_gradient_checkpointing()

    def set_attention(self, kernel: str) -> None:
        """Choose the attention kernel of spatial and temporal layers: ``sdpa`` (also ``auto``) or ``xformers``.

        Raises ``UserError`` if the name is unknown or xformers cannot run here.
        """
        kernel = "sdpa" if kernel == "auto" else kernel
        if kernel not in ("sdpa", "xformers"):
            raise UserError(f"unknown attention {kernel!r}; choose auto, sdpa or xformers")
        if kernel == self._attention:
            return
        if kernel == "sdpa":
            self.unet.disable_xformers_memory_efficient_attention()
        else:
            try:
                self.unet.enable_xformers_memory_efficient_attention()
            except (ImportError, ValueError, RuntimeError, NotImplementedError) as error:
                reason = str(error).partition("\n")[0]
                raise UserError(f"xformers cannot be used here ({reason}); choose attention sdpa") from error
        self._attention = kernel


def inflate(unet: UNet2DConditionModel, config: TemporalConfig) -> VideoUNet:
    """Turn a 2-D UNet into a video model that is initially bit-identical to it on every frame.

    The UNet is modified in place, not copied: its layers are wrapped. A temporal block follows each (resnet, attention)
    pair of a block, on the level of the block; the mid block counts as the lowest level.

    Raises ``UserError`` if the UNet is already inflated, a level does not exist, or channels do not split into heads.
    """
    if any(isinstance(module, WithTemporal) for module in unet.modules()):
        raise UserError("this UNet is inflated already")
    levels = len(unet.down_blocks)
    for level in [*(config.attention_levels or ()), *(config.conv_levels or ())]:
        if not 0 <= level < levels:
            raise UserError(f"no level {level} for temporal layers: the UNet has the levels 0 to {levels - 1}")
    widths = unet.config.block_out_channels
    blocks = [(block, level) for level, block in enumerate(unet.down_blocks)]
    blocks += [(block, levels - 1 - index) for index, block in enumerate(unet.up_blocks)]
    blocks += [] if unet.mid_block is None else [(unet.mid_block, levels - 1)]
    for block, level in blocks:
        attention, conv = config.has_attention(level), config.has_conv(level)
        if attention or conv:
            for layers, index in _last_of_pairs(block):
                temporal = TemporalBlock(widths[level], config, attention, conv).to(unet.device, unet.dtype)
                layers[index] = WithTemporal(layers[index], temporal)
    return VideoUNet(unet, config)


def _last_of_pairs(block: Any) -> Iterator[tuple[nn.ModuleList, int]]:
    """Yield list and index of the last layer of each (resnet, attention) pair of a diffusers block."""
    attentions = getattr(block, "attentions", nn.ModuleList())
    for index, (_, attention) in enumerate(zip_longest(block.resnets, attentions)):
        yield (block.resnets if attention is None else attentions), index


def split_state_dict(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split the state dict of a :class:`VideoUNet` into ``(spatial, temporal)``.

    ``spatial`` has the keys of the plain diffusers UNet and loads into it strictly; ``temporal`` keeps its keys.
    """
    spatial = {
        key.removeprefix("unet.").replace(".spatial.", ".", 1): value
        for key, value in state.items()
        if not _is_temporal(key)
    }
    return spatial, {key: value for key, value in state.items() if _is_temporal(key)}


def grow_conv_in(unet: UNet2DConditionModel, in_channels: int) -> UNet2DConditionModel:
    """Append input channels with zero weights, in place: the output does not change, whatever the new channels hold.

    Raises ``UserError`` if the UNet already has more than ``in_channels`` input channels.
    """
    old = unet.conv_in
    if in_channels < old.in_channels:
        raise UserError(f"the UNet has {old.in_channels} input channels, more than the {in_channels} asked for")
    new = nn.Conv2d(in_channels, old.out_channels, old.kernel_size, old.stride, old.padding).to(old.weight)
    with torch.no_grad():
        new.weight.zero_()
        new.weight[:, : old.in_channels] = old.weight
    new.bias = old.bias
    unet.conv_in = new
    unet.register_to_config(in_channels=in_channels)
    return unet


def _is_temporal(name: str) -> bool:
    return ".temporal." in name


def _per_frame(value: Any, frames: int) -> Any:
    """``(b,) -> (b t)``; a number, a 0-d tensor or ``None`` is returned unchanged."""
    if isinstance(value, Tensor) and value.ndim:
        return repeat(value, "b -> (b t)", t=frames)
    return value


def _text_per_frame(text: Tensor | None, frames: int) -> Tensor | None:
    """``b n d`` or ``b t n d -> (b t) n d``."""
    if text is None:
        return None
    if text.ndim == 3:
        return repeat(text, "b n d -> (b t) n d", t=frames)
    return rearrange(text, "b t n d -> (b t) n d")
