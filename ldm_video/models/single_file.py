"""Single ``.safetensors`` files in the CompVis layout, the form in which most Stable Diffusion checkpoints are traded.

diffusers' converters rename the weights; the configurations are read off the file's own shapes, so that nothing is
downloaded. What a file of weights cannot say (heads, prediction type, scaling factor) is the kind's, as published.
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
from transformers import AutoTokenizer, CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerBase

from ldm_video.core.checkpoints import load_strict, read_weights
from ldm_video.core.errors import UserError
from ldm_video.models.stable_diffusion import Checkpoint
from ldm_video.models.text import TextEncoder

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."
TOKENIZER = "openai/clip-vit-large-patch14"
_HEAD_WIDTH = 64  # of every CLIP text model, and of Stable Diffusion 2's UNet
State = dict[str, Tensor]


@dataclass(frozen=True)
class Kind:
    """What is published of a checkpoint beside its weights. ``heads``: of the UNet; None for heads of 64 channels."""

    heads: int | None
    scaling_factor: float
    prediction_type: str = "epsilon"


# (input channels, OpenCLIP text encoder) -> kind. Stable Diffusion 2's text to image is missing: its files do not tell
# epsilon from v prediction.
KINDS = {
    (4, False): Kind(8, 0.18215),
    (9, False): Kind(8, 0.18215),
    (9, True): Kind(None, 0.18215),
    (7, True): Kind(8, 0.08333, "v_prediction"),
}


def read_single_file(path: Path) -> Checkpoint:
    """Read a whole checkpoint (UNet, autoencoder, text encoder) in float32. Strict, as a folder is read.

    The tokenizer, which is no weight, is the folder ``tokenizer`` beside the file, or CLIP's from the hub.

    Raises ``UserError`` for a file of another kind or with keys that are missing or left over.
    """
    state = read_weights(path)
    entrance = state.get(f"{UNET}input_blocks.0.0.weight")
    if entrance is None or not any(key.startswith(VAE) for key in state):
        raise UserError(f"{path} has no Stable Diffusion UNet and autoencoder in the CompVis layout; use a whole file")
    open_clip = any(key.startswith(OPEN_CLIP) for key in state)
    kind = KINDS.get((entrance.shape[1], open_clip))
    if kind is None:
        raise UserError(
            f"{path}: {entrance.shape[1]} input channels with {'Open' if open_clip else ''}CLIP text is no known "
            "Stable Diffusion 1, inpainting or x4-upscaler file; use its folder in the diffusers layout"
        )
    lowres_betas = state.get("low_scale_model.betas")
    return Checkpoint(
        unet=_read_unet(state, kind, path),
        autoencoder=_read_autoencoder(state, kind, path),
        text=TextEncoder(_read_text(state, open_clip, path), _tokenizer(path, open_clip)),
        scheduler=_scheduler(state.get("betas"), kind.prediction_type),
        lowres_scheduler=None if lowres_betas is None else _scheduler(lowres_betas, "epsilon"),
    )


def _scheduler(betas: Tensor | None, prediction_type: str) -> dict[str, Any]:
    """DDIM with the file's own betas; where it has none, or has them in half precision, with Stable Diffusion's."""
    config = {**SCHEDULER_DEFAULT_CONFIG, "_class_name": "DDIMScheduler", "prediction_type": prediction_type}
    exact = betas is not None and betas.dtype in (torch.float32, torch.float64)
    return {**config, "trained_betas": betas.tolist()} if betas is not None and exact else config


def _read_unet(state: State, kind: Kind, path: Path) -> UNet2DConditionModel:
    config = unet_config(state, kind)
    converted = convert_ldm_unet_checkpoint(state, config)
    _refuse_leftovers(state, UNET, converted, path)
    unet = UNet2DConditionModel(**config)
    load_strict(unet, _float(converted), path)
    return unet


def unet_config(state: Mapping[str, Tensor], kind: Kind) -> dict[str, Any]:
    """The diffusers configuration of a CompVis UNet, read off its shapes."""
    shapes = {key.removeprefix(UNET): value.shape for key, value in state.items() if key.startswith(UNET)}
    steps_down = sum(f"input_blocks.{i}.0.op.weight" in shapes for i in range(100))
    blocks = sum(f"input_blocks.{i}.0.in_layers.2.weight" in shapes for i in range(100))
    levels, layers = steps_down + 1, blocks // (steps_down + 1)
    first = [1 + level * (layers + 1) for level in range(levels)]  # the first block of each level
    widths = [shapes[f"input_blocks.{i}.0.in_layers.2.weight"][0] for i in first]
    attention = [f"input_blocks.{i}.1.transformer_blocks.0." for i in first]
    has = [f"{name}attn2.to_k.weight" in shapes for name in attention]
    example = attention[has.index(True)]
    return {
        "in_channels": shapes["input_blocks.0.0.weight"][1],
        "out_channels": shapes["out.2.weight"][0],
        "block_out_channels": widths,
        "layers_per_block": layers,
        "down_block_types": ["CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in has],
        "up_block_types": ["CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(has)],
        "cross_attention_dim": shapes[f"{example}attn2.to_k.weight"][1],
        "attention_head_dim": kind.heads or [width // _HEAD_WIDTH for width in widths],
        "use_linear_projection": len(shapes[example.replace("transformer_blocks.0.", "proj_in.weight")]) == 2,
        # Where keys are made of the text the first attention looks at it too.
        "only_cross_attention": [
            yes and shapes[f"{name}attn1.to_k.weight"] != shapes[f"{name}attn1.to_q.weight"]
            for yes, name in zip(has, attention, strict=True)
        ],
        "num_class_embeds": shapes["label_emb.weight"][0] if "label_emb.weight" in shapes else None,
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
    converted = convert_ldm_vae_checkpoint(state, config)
    _refuse_leftovers(state, VAE, converted, path)
    autoencoder = AutoencoderKL(**config)
    load_strict(autoencoder, _float(converted), path)
    return autoencoder


def _read_text(state: State, open_clip: bool, path: Path) -> CLIPTextModel:
    prefix = OPEN_CLIP if open_clip else f"{CLIP}text_model."
    layer = "transformer.resblocks.{}.mlp.c_fc.weight" if open_clip else "encoder.layers.{}.mlp.fc1.weight"
    embeddings = "" if open_clip else "embeddings."
    positions = f"{prefix}{embeddings}position" + ("al_embedding" if open_clip else "_embedding.weight")
    tokens = state.get(f"{prefix}{embeddings}token_embedding.weight")
    depth = sum(prefix + layer.format(i) in state for i in range(100))
    if tokens is None or positions not in state or not depth:
        raise UserError(f"{path} has no CLIP text encoder; use the whole file or the folder in the diffusers layout")
    if open_clip:  # the last layer is left out: Stable Diffusion 2 reads the one before it
        depth -= 1
        state = {key: value for key, value in state.items() if f"{prefix}transformer.resblocks.{depth}." not in key}
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
            return AutoTokenizer.from_pretrained(beside, local_files_only=True)
        patterns = ["vocab.json", "merges.txt", "tokenizer*.json", "special_tokens_map.json"]
        folder = snapshot_download(TOKENIZER, allow_patterns=patterns)
        # OpenCLIP pads with token 0.
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, **({"pad_token": "!"} if open_clip else {}))
    except (OSError, ValueError) as error:
        raise UserError(
            f"no tokenizer for {path} ({error}); put the checkpoint's folder 'tokenizer' beside the file"
        ) from error


def _refuse_leftovers(state: State, prefix: str, converted: Mapping[str, Tensor], path: Path) -> None:
    """diffusers' converters pass over keys that they do not know; a tensor that went nowhere is an error here."""
    used = {value.data_ptr() for value in converted.values()}
    left = sorted(key for key in state if key.startswith(prefix) and state[key].data_ptr() not in used)
    if left:
        raise UserError(
            f"{path}: key '{left[0]}' unexpected; the file is no Stable Diffusion checkpoint of a known kind"
        )


def _float(state: Mapping[str, Tensor]) -> State:
    return {key: value.float() for key, value in state.items()}
