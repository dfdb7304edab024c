"""Single ``.safetensors`` files in the CompVis layout, the usual format of shared Stable Diffusion checkpoints.

diffusers' converters rename the weights; configurations are inferred from tensor shapes, so that nothing is downloaded
for them. What weights do not reveal (heads, prediction type, scaling factor) comes from a table of published kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from diffusers.loaders.single_file_utils import (
    SCHEDULER_DEFAULT_CONFIG,
    convert_ldm_clip_checkpoint,
    convert_ldm_unet_checkpoint,
    convert_ldm_vae_checkpoint,
    convert_open_clip_checkpoint,
)
from huggingface_hub import snapshot_download
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from ldm_video.core.checkpoints import load_strict, read_weights
from ldm_video.core.errors import UserError
from ldm_video.models.stable_diffusion import UPSCALER_SCALING, Checkpoint
from ldm_video.models.text import TextEncoder, read_tokenizer

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
TOKENIZER = "openai/clip-vit-large-patch14"
_UNUSED_BLOCK = f"{OPEN_CLIP}transformer.resblocks.23."  # OpenCLIP's last block: Stable Diffusion 2 stops before it
_UPSCALER = 7  # input channels of the x4-upscaler's UNet
_HEAD_WIDTH = 64  # of all CLIP text models and of Stable Diffusion 2's UNet
State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """Published settings of a checkpoint that are not in its weights.

    Attributes:
        heads: number of heads in the UNet's attention; None for heads of 64 channels.
        scaling_factor: of the autoencoder's latents.
        prediction_type: of the UNet, in diffusers' terms.
        betas: first and last beta of the noise schedules of latents and low-res pixels.
    """

    heads: int | None
    scaling_factor: float
    prediction_type: str = "epsilon"
    betas: tuple[float, float] = (0.00085, 0.012)


# (input channels, OpenCLIP text encoder) -> kind. Stable Diffusion 2 text-to-image is missing: its files do not reveal
# whether they predict epsilon or v.
KINDS = {
    (4, False): Kind(8, 0.18215),
    (9, False): Kind(8, 0.18215),
    (9, True): Kind(None, 0.18215),
    (_UPSCALER, True): Kind(8, UPSCALER_SCALING, "v_prediction", (0.0001, 0.02)),
}


def read_single_file(path: Path) -> Checkpoint:
    """Read a whole checkpoint (UNet, autoencoder, text encoder) in float32, strictly, like a folder.

    The tokenizer, which is not part of the file, is read from the folder ``tokenizer`` beside it; otherwise CLIP's is
    downloaded from the hub.

    Raises ``UserError`` for another kind of file and for missing or unexpected keys.
    """
    try:
        return _read(read_weights(path), path)
    except KeyError as error:  # a weight needed for its shape, here or in diffusers' converters
        raise UserError(f"{path}: key {error} missing; the file is not whole, copy or download it again") from error


def _read(state: State, path: Path) -> Checkpoint:
    conv_in = state.get(f"{UNET}input_blocks.0.0.weight")
    if conv_in is None or not any(key.startswith(VAE) for key in state):
        raise UserError(f"{path} has no Stable Diffusion UNet and autoencoder in the CompVis layout; use a whole file")
    open_clip = any(key.startswith(OPEN_CLIP) for key in state)
    channels = conv_in.shape[1]
    kind = KINDS.get((channels, open_clip))
    if kind is None:
        raise UserError(
            f"{path}: {channels} input channels with {'Open' if open_clip else ''}CLIP text is no known "
            "Stable Diffusion 1, inpainting or x4-upscaler file; use its folder in the diffusers layout"
        )
    return Checkpoint(
        unet=_read_unet(state, kind, path),
        autoencoder=_read_autoencoder(state, kind, path),
        text=TextEncoder(_read_text(state, open_clip, path), _tokenizer(path, open_clip)),
        scheduler=_scheduler(state.get("betas"), kind.betas, kind.prediction_type),
        lowres_scheduler=(
            _scheduler(state.get("low_scale_model.betas"), kind.betas, "epsilon") if channels == _UPSCALER else None
        ),
    )


def _scheduler(betas: Tensor | None, published: tuple[float, float], prediction_type: str) -> dict[str, Any]:
    """DDIM with the file's betas; with the published ones if the file has none or stores them in half precision."""
    names = {"_class_name": "DDIMScheduler", "prediction_type": prediction_type}
    config = {**SCHEDULER_DEFAULT_CONFIG, "beta_start": published[0], "beta_end": published[1], **names}
    exact = betas is not None and betas.dtype in (torch.float32, torch.float64)
    return {**config, "trained_betas": betas.tolist()} if betas is not None and exact else config


def _read_unet(state: State, kind: Kind, path: Path) -> UNet2DConditionModel:
    config = unet_config(state, kind)
    converted = _drop_missing(convert_ldm_unet_checkpoint(state, config))
    _refuse_leftovers(state, UNET, converted, path)
    unet = UNet2DConditionModel(**config)
    load_strict(unet, _float(converted), path)
    return unet


def unet_config(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
    """Infer the diffusers config of a CompVis UNet from its shapes; ``KeyError`` names a weight that is missing."""
    shapes = {key: value.shape for key, value in state.items() if key.startswith(UNET)}
    blocks = [f"{UNET}input_blocks.{i}." for i in range(100)]
    blocks = [block for block in blocks if any(key.startswith(block) for key in shapes)][1:]  # after the entry
    down = [any(key.startswith(f"{block}0.op.") for key in shapes) for block in blocks]
    kernels = [f"{block}0.{'op' if yes else 'in_layers.2'}.weight" for block, yes in zip(blocks, down, strict=True)]
    outputs = [shapes[kernel][0] for kernel in kernels]
    levels = sum(down) + 1
    layers = (len(blocks) - sum(down)) // levels
    if not layers:
        raise KeyError(f"{UNET}input_blocks.1.0.in_layers.2.weight")
    first = range(0, levels * (layers + 1), layers + 1)  # the first block of each level
    widths = [outputs[i] for i in first]
    attention = [f"{blocks[i]}1.transformer_blocks.0." for i in first]
    has_attention = [any(key.startswith(name) for key in shapes) for name in attention]
    channels, levels_of_noise = shapes[f"{UNET}input_blocks.0.0.weight"][1], f"{UNET}label_emb.weight"
    example = attention[has_attention.index(True) if any(has_attention) else 0]
    return {
        "in_channels": channels,
        "out_channels": shapes[f"{UNET}out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in has_attention],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(has_attention)],
        "cross_attention_dim": shapes[f"{example}attn2.to_k.weight"][1],
        "attention_head_dim": kind.heads or [width // _HEAD_WIDTH for width in widths],
        "use_linear_projection": len(shapes[example.replace("transformer_blocks.0.", "proj_in.weight")]) == 2,
        # If attn1's keys have the text's width, it is cross-attention as well.
        "only_cross_attention": [
            yes and shapes[f"{name}attn1.to_k.weight"] != shapes[f"{name}attn1.to_q.weight"]
            for yes, name in zip(has_attention, attention, strict=True)
        ],
        "num_class_embeds": shapes[levels_of_noise][0] if levels_of_noise in shapes or channels == _UPSCALER else None,
    }


def _read_autoencoder(state: State, kind: Kind, path: Path) -> AutoencoderKL:
    levels = sum(f"{VAE}encoder.down.{i}.block.0.conv2.weight" in state for i in range(100))
    widths = [state[f"{VAE}encoder.down.{i}.block.0.conv2.weight"].shape[0] for i in range(levels)]
    config = {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": sum(f"{VAE}encoder.down.0.block.{i}.conv2.weight" in state for i in range(100)),
        "latent_channels": state[f"{VAE}post_quant_conv.weight"].shape[0],
        "scaling_factor": kind.scaling_factor,
    }
    converted = _drop_missing(convert_ldm_vae_checkpoint(state, config))
    _refuse_leftovers(state, VAE, converted, path)
    autoencoder = AutoencoderKL(**config)
    load_strict(autoencoder, _float(converted), path)
    return autoencoder


def _read_text(state: State, open_clip: bool, path: Path) -> CLIPTextModel:
    # Remove by name: files converted from a diffusers folder do not have this block.
    state = {key: value for key, value in state.items() if not key.startswith(_UNUSED_BLOCK)}
    prefix = OPEN_CLIP if open_clip else f"{CLIP}text_model."
    layer = "transformer.resblocks.{}.mlp.c_fc.weight" if open_clip else "encoder.layers.{}.mlp.fc1.weight"
    embeddings = "" if open_clip else "embeddings."
    positions = f"{prefix}{embeddings}position" + ("al_embedding" if open_clip else "_embedding.weight")
    tokens = state.get(f"{prefix}{embeddings}token_embedding.weight")
    depth = sum(prefix + layer.format(i) in state for i in range(100))
    if tokens is None or positions not in state or not depth:
        raise UserError(f"{path} has no CLIP text encoder; use the whole file or the folder in the diffusers layout")
    vocabulary, width = tokens.shape
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=state[prefix + layer.format(0)].shape[0],
            num_hidden_layers=depth,
            num_attention_heads=width // _HEAD_WIDTH,
            max_position_embeddings=state[positions].shape[0],
            hidden_act="gelu" if open_clip else "quick_gelu",
            bos_token_id=vocabulary - 2,
            eos_token_id=vocabulary - 1,
        )
    )
    converted = (
        convert_open_clip_checkpoint(model, state, OPEN_CLIP) if open_clip else convert_ldm_clip_checkpoint(state)
    )
    converted = {key.removeprefix("text_model."): value for key, value in converted.items()}
    converted.pop("embeddings.position_ids", None)  # 0, 1, 2, ..., in older files
    load_strict(model, _float(converted), path)
    return model


def _tokenizer(path: Path, open_clip: bool) -> PreTrainedTokenizerBase:
    beside = path.parent / "tokenizer"
    try:
        if beside.is_dir():
            return read_tokenizer(beside)
        patterns = ["vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json"]
        folder = snapshot_download(TOKENIZER, allow_patterns=patterns)
        # OpenCLIP pads with token 0.
        return read_tokenizer(Path(folder), **({"pad_token": "!"} if open_clip else {}))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer for {path} ({error}); put the checkpoint's folder 'tokenizer' beside the file"
        ) from error


def _refuse_leftovers(state: State, prefix: str, converted: Mapping[str, Tensor], path: Path) -> None:
    """Raise ``UserError`` for tensors not in ``converted``: diffusers' converters skip unknown keys silently."""
    used = {value.data_ptr() for value in converted.values()}
    left = sorted(key for key in state if key.startswith(prefix) and state[key].data_ptr() not in used)
    if left:
        raise UserError(
            f"{path}: key '{left[0]}' unexpected; the file is no Stable Diffusion checkpoint of a known kind"
        )


def _drop_missing(converted: Mapping[str, Tensor | None]) -> State:
    """Drop the None that diffusers' converters insert for missing weights; strict loading reports those later."""
    return {key: value for key, value in converted.items() if value is not None}


def _float(state: Mapping[str, Tensor]) -> State:
    return {key: value.float() for key, value in state.items()}
