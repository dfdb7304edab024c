"""Small random models, every weight away from zero, for tests of what runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ldm_video.core.evidence import Evidence, EvidenceLayout, build_evidence
from ldm_video.models.codec import BasisCodec, ImageCodec, VideoCodec
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.text import TextEncoder
from ldm_video.models.video_model import SamplingDefaults, VideoModel

TEXT_WIDTH = 8
TOKENS = 6


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def rand_pixels(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [-1, 1]."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def perturb(module: nn.Module, size: float = 0.05, seed: int = 0) -> None:
    """Add noise to every parameter, so that no zero-initialised layer hides what comes before it."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def box_hole(frames: int, size: tuple[int, int], rows: slice, columns: slice) -> Tensor:
    """``1 t 1 H W``, 1 in the box."""
    hole = torch.zeros(1, frames, 1, *size)
    hole[..., rows, columns] = 1
    return hole


def clip_evidence(frames: int, low: tuple[int, int], scale: int = 4, seed: int = 0) -> Evidence:
    """Random low-res frames with a hole off the centre."""
    height, width = low[0] * scale, low[1] * scale
    hole = box_hole(frames, (height, width), slice(height // 4, height // 2), slice(0, width // 3))
    return build_evidence(rand_pixels(1, frames, 3, *low, seed=seed), hole)


def assert_tile_agrees(codec: BasisCodec, evidence: Evidence, columns: slice, reach: int) -> None:
    """A tile of the clip decodes as the whole does beyond ``reach`` pixels of its cuts, and at them differs."""
    height, width = evidence.size
    latents = randn(1, evidence.guess.shape[1], codec.latent_channels, height // 8, width // 8)
    whole = codec.decode(latents, evidence)
    part = evidence.crop(slice(None), slice(None), columns)
    tile = codec.decode(latents[..., columns.start // 8 : columns.stop // 8], part)
    difference = (tile - whole[..., columns]).abs()
    assert difference[..., reach:-reach].shape[-1] > 16
    torch.testing.assert_close(difference[..., reach:-reach].max(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert difference[..., :4].max() > 1e-3  # at the cut itself the tile cannot know better


def unet_config(in_channels: int, out_channels: int, text: bool = False) -> dict[str, Any]:
    down, up = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D") if text else ("DownBlock2D", "UpBlock2D")
    return {
        "in_channels": in_channels,
        "out_channels": out_channels,
        "block_out_channels": [8, 16],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "attention_head_dim": 4,
        "cross_attention_dim": TEXT_WIDTH,
        "down_block_types": [down, "DownBlock2D"],
        "mid_block_type": "UNetMidBlock2DCrossAttn" if text else "UNetMidBlock2D",
        "up_block_types": ["UpBlock2D", up],
    }


def small_video_model(**temporal: Any) -> VideoModel:
    """f8 latents of 4 channels, evidence space to depth, no text; output sides in multiples of 16."""
    torch.manual_seed(0)
    layout = EvidenceLayout("space_to_depth", 8)
    unet = unet_config(4 + layout.channels, 4)
    denoiser = VideoUNet.from_config({"unet": unet, "temporal": {"head_dim": 4, **temporal}})
    codec = VideoCodec(4, (8, 8, 8, 4), (1, 1, 1))
    codec.latent_std *= 1.7
    model = VideoModel(
        denoiser, codec, FlowMatchEulerDiscreteScheduler(shift=3.0), layout, None, 0.5, SamplingDefaults(steps=3)
    )
    perturb(model)
    return model.eval().requires_grad_(False)


def small_autoencoder() -> AutoencoderKL:
    """f4, 3 latent channels, a scaling factor of 0.7."""
    torch.manual_seed(1)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(4, 8, 8),
        latent_channels=3,
        norm_num_groups=4,
        scaling_factor=0.7,
    )
    return autoencoder.eval().requires_grad_(False)


def small_text_encoder(folder: Path) -> TextEncoder:
    """CLIP with random weights and a vocabulary of the letters a, b and c."""
    tokens = ["a", "b", "c", "a</w>", "b</w>", "c</w>", "ab", "ab</w>", "<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\na b\na b</w>\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=TOKENS)
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(tokens),
        hidden_size=TEXT_WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        bos_token_id=8,
        eos_token_id=9,
        pad_token_id=9,
    )
    return TextEncoder(CLIPTextModel(config), tokenizer)


def small_text_model(folder: Path) -> VideoModel:
    """f4 latents from an ``AutoencoderKL``, evidence as pixels, CLIP text: the shape of an SD x4-upscaler."""
    layout = EvidenceLayout("pixels", 4)
    text = small_text_encoder(folder)
    torch.manual_seed(3)
    unet = unet_config(3 + layout.channels, 3, text=True)
    denoiser = VideoUNet.from_config({"unet": unet, "temporal": {"head_dim": 4}})
    perturb(denoiser)
    scheduler = FlowMatchEulerDiscreteScheduler()
    model = VideoModel(denoiser, ImageCodec(small_autoencoder()), scheduler, layout, text)
    return model.eval().requires_grad_(False)
