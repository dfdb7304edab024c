"""Stable Diffusion's x4 upscaler and inpainting (Rombach et al. 2022) in diffusers' pipelines, frame by frame.

Every frame starts from the same noise, the most favourable choice for a method without temporal modelling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from eval.file_states import file_states
from eval.framewise import GROW_LOWRES_PIXELS, enlarge, frame_by_frame, grow, shared_code
from eval.peers.packages import wrong_scale

STEPS = 25
SEED = 0
PROMPT = ""
PIXELS = "[0, 1]"  # range of the pipelines' input; given [-1, 1], they would mistake a bright frame for [0, 1]
SCALE = 4
UPSCALER_NOISE_LEVEL = 20  # the pipeline's own default


@dataclass(frozen=True)
class StableDiffusionUpscaler:
    """``StableDiffusionUpscalePipeline``, x4, without a prompt and hence without guidance."""

    folder: Path | None
    device: str = "cpu"
    name: str = "sd_upscaler"
    fills: bool = False

    def identity(self) -> str:
        return _identity(self.name, self.folder, self.device)

    def missing(self, scale: int) -> str | None:
        return _no_checkpoint(self.name, "--sd-upscaler", self.folder) or wrong_scale(self.name, SCALE, scale)

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        pipeline = _load("StableDiffusionUpscalePipeline", str(self.folder), self.device)

        def one(frame: np.ndarray, _: np.ndarray) -> np.ndarray:
            pixels = _to_tensor(frame)
            made = pipeline(
                PROMPT,
                image=_pad(pixels, _latent_multiple(pipeline)),  # in [0, 1]: diffusers itself converts it to [-1, 1]
                noise_level=UPSCALER_NOISE_LEVEL,
                **_sampling_options(self.device),
            ).images
            return _to_image(made)[: frame.shape[0] * SCALE, : frame.shape[1] * SCALE]

        frame_by_frame(lowres, mask, scale, output, one)


@dataclass(frozen=True)
class StableDiffusionInpaint:
    """Bicubic, then ``StableDiffusionInpaintPipeline`` per frame; only the slightly dilated hole is taken from it."""

    folder: Path | None
    device: str = "cpu"
    name: str = "sd_inpaint"
    fills: bool = True

    def identity(self) -> str:
        return f"{_identity(self.name, self.folder, self.device)} {GROW_LOWRES_PIXELS}"

    def missing(self, scale: int) -> str | None:
        return _no_checkpoint(self.name, "--sd-inpaint", self.folder)

    def __call__(self, lowres: Path, mask: Path | None, scale: int, output: Path) -> None:
        pipeline = _load("StableDiffusionInpaintPipeline", str(self.folder), self.device)

        def one(frame: np.ndarray, hole: np.ndarray) -> np.ndarray:
            large = enlarge(frame, scale)
            if not hole.any():
                return large
            grown = grow(hole, scale)
            step = pipeline.vae_scale_factor * _latent_multiple(pipeline)
            image = _pad(_to_tensor(large), step)
            fill = _pad(torch.from_numpy(grown)[None, None].float(), step)  # 1 1 h w
            height, width = image.shape[-2:]
            size = {"height": height, "width": width}
            made = pipeline(PROMPT, image=image, mask_image=fill, **size, **_sampling_options(self.device)).images
            return np.where(grown[..., None] > 0, _to_image(made)[: large.shape[0], : large.shape[1]], large)

        frame_by_frame(lowres, mask, scale, output, one)


@lru_cache(maxsize=1)
def _load(name: str, folder: str, device: str) -> Any:
    import diffusers

    extra = {"safety_checker": None, "requires_safety_checker": False} if "Inpaint" in name else {}
    pipeline = getattr(diffusers, name).from_pretrained(folder, local_files_only=True, use_safetensors=True, **extra)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def _sampling_options(device: str) -> dict[str, Any]:
    generator = torch.Generator(device).manual_seed(SEED)
    return {"num_inference_steps": STEPS, "guidance_scale": 1.0, "generator": generator, "output_type": "pt"}


def _latent_multiple(pipeline: Any) -> int:
    """Return the factor that latent sides must be multiples of, so that the UNet returns the size it was given."""
    return 2 ** (len(pipeline.unet.config.block_out_channels) - 1)


def _pad(pixels: Tensor, step: int) -> Tensor:
    """Repeat the last row and column of ``1 c h w`` until both sides are multiples of ``step``."""
    height, width = pixels.shape[-2:]
    bottom, right = math.ceil(height / step) * step - height, math.ceil(width / step) * step - width
    return torch.nn.functional.pad(pixels, (0, right, 0, bottom), mode="replicate")


def _to_tensor(image: np.ndarray) -> Tensor:
    return rearrange(torch.from_numpy(image).float() / 255, "h w c -> 1 c h w")


def _to_image(made: Tensor) -> np.ndarray:
    return rearrange((made.float().cpu().clamp(0, 1) * 255).round().byte(), "1 c h w -> h w c").numpy()


def _identity(name: str, folder: Path | None, device: str) -> str:
    import diffusers

    state = file_states(folder) if folder else None
    code = shared_code(__file__)
    return f"{name} {STEPS} {SEED} {device} {state} {PIXELS} diffusers {diffusers.__version__} {code}"


def _no_checkpoint(name: str, option: str, folder: Path | None) -> str | None:
    if folder is not None and (folder / "model_index.json").is_file():
        return None
    given = "" if folder is None else f"{folder} holds no model_index.json; "
    return f"{name} needs a checkpoint: {given}give {option} DIR, a folder in the diffusers layout"
