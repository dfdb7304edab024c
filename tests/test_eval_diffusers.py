"""Stable Diffusion beside us: what the benchmark makes is what diffusers' own pipelines make, on tiny checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
)
from PIL import Image

from eval.methods import Settings, find_methods
from eval.peers import stable_diffusion
from tests.eval_support import make_input, read, run
from tests.model_support import small_autoencoder, small_text_encoder, unet_config


def save_upscaler(folder: Path) -> StableDiffusionUpscalePipeline:
    text = small_text_encoder(folder / "text")
    torch.manual_seed(0)
    unet = UNet2DConditionModel(**unet_config(3 + 3, 3, text=True), num_class_embeds=1000)
    schedulers = {"low_res_scheduler": DDPMScheduler(), "scheduler": DDIMScheduler()}
    pipeline = StableDiffusionUpscalePipeline(
        small_autoencoder(), text.model, text.tokenizer, unet, **schedulers, max_noise_level=350
    )
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def save_inpaint(folder: Path) -> StableDiffusionInpaintPipeline:
    text = small_text_encoder(folder / "text")
    torch.manual_seed(0)
    autoencoder = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 8),
        latent_channels=4,
        norm_num_groups=4,
    )
    unet = UNet2DConditionModel(**unet_config(4 + 1 + 4, 4, text=True), sample_size=64)
    parts = {"vae": autoencoder, "text_encoder": text.model, "tokenizer": text.tokenizer, "unet": unet}
    pipeline = StableDiffusionInpaintPipeline(
        **parts, scheduler=DDIMScheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )
    pipeline.save_pretrained(folder / "pipeline")
    return pipeline


def call(pipeline: Any, **arguments: Any) -> np.ndarray:
    """As a user of diffusers calls it: pictures in, a picture out."""
    generator = torch.Generator().manual_seed(stable_diffusion.SEED)
    pipeline.set_progress_bar_config(disable=True)
    steps = stable_diffusion.STEPS
    made = pipeline("", **arguments, num_inference_steps=steps, guidance_scale=1.0, generator=generator)
    return np.asarray(made.images[0])


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stable_diffusion, "STEPS", 2)


def test_the_upscaler_is_diffusers_own_pipeline(tmp_path: Path, few_steps: None) -> None:
    clip = make_input(tmp_path, frames=2, size=(64, 96))
    pipeline = save_upscaler(tmp_path / "sd")
    made = run("sd_upscaler", clip, tmp_path, sd_upscaler=tmp_path / "sd" / "pipeline")
    for frame, low in zip(made, read(clip.lowres), strict=True):
        expected = call(pipeline, image=Image.fromarray(low), noise_level=20)
        assert expected.std() > 1
        np.testing.assert_allclose(frame.astype(int), expected, atol=1)


def test_the_upscaler_takes_sizes_that_its_unet_cannot_halve(tmp_path: Path, few_steps: None) -> None:
    clip = make_input(tmp_path, frames=1, size=(80, 112))  # low-res 20x28, made of what is padded to 20x28
    odd = tmp_path / "odd.png"
    cv2.imwrite(str(odd), read(clip.lowres)[0, :19, :27, ::-1])
    save_upscaler(tmp_path / "sd")
    (method,) = find_methods(["sd_upscaler"], Settings(sd_upscaler=tmp_path / "sd" / "pipeline"))
    method(odd, None, 4, tmp_path / "odd.mkv")
    assert read(tmp_path / "odd.mkv").shape == (1, 76, 108, 3)


def test_inpainting_is_diffusers_own_pipeline_inside_the_hole(tmp_path: Path, few_steps: None) -> None:
    clip = make_input(tmp_path, frames=2, size=(64, 96), hole="box")
    pipeline = save_inpaint(tmp_path / "sd")
    made = run("sd_inpaint", clip, tmp_path, sd_inpaint=tmp_path / "sd" / "pipeline")
    bicubic, hole = run("bicubic", clip, tmp_path), read(clip.mask)[..., 0]
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (25, 25))
    for frame, large, mask in zip(made, bicubic, hole, strict=True):
        grown = cv2.dilate(mask, kernel)
        size = {"height": 64, "width": 96}
        expected = call(pipeline, image=Image.fromarray(large), mask_image=Image.fromarray(grown), **size)
        np.testing.assert_array_equal(frame[grown == 0], large[grown == 0])
        np.testing.assert_allclose(frame[grown > 0].astype(int), expected[grown > 0], atol=1)
        assert (frame[grown > 0] != large[grown > 0]).mean() > 0.9


def test_a_bright_picture_is_read_as_any_other(tmp_path: Path, few_steps: None) -> None:
    """Pipelines guess the range by the smallest value: with no pixel below mid-grey, [-1, 1] looks like [0, 1]."""
    bright = tmp_path / "bright.png"
    shades = np.random.default_rng(0).integers(150, 250, (16, 24, 3)).astype(np.uint8)
    cv2.imwrite(str(bright), shades[..., ::-1])
    pipeline = save_upscaler(tmp_path / "sd")
    (method,) = find_methods(["sd_upscaler"], Settings(sd_upscaler=tmp_path / "sd" / "pipeline"))
    method(bright, None, 4, tmp_path / "bright.mkv")
    expected = call(pipeline, image=Image.fromarray(shades), noise_level=20)
    np.testing.assert_allclose(read(tmp_path / "bright.mkv")[0].astype(int), expected, atol=1)
