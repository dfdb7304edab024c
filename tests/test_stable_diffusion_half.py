"""The x4-upscaler's decoder overflows in half precision: it is run in single."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_video.models.device import place
from ldm_video.models.open_model import FRAME_BY_FRAME, open_model
from ldm_video.models.video_model import VideoModel
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from tests.model_support import rand_pixels, randn
from tests.sd_checkpoints import write_pipeline

SETTINGS = RestoreSettings(steps=2, guidance=2.0, seed=1, noise_level=20, colour="none")


def loud_model(folder: Path) -> VideoModel:
    """A decoder whose activations reach 1e6 and come back, as the published one's go beyond 65504."""
    model = open_model(folder, temporal=FRAME_BY_FRAME)
    with torch.no_grad():
        for parameter in model.codec.autoencoder.decoder.conv_in.parameters():
            parameter.mul_(1e6)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pipeline(tmp_path_factory.mktemp("sd") / "x4", "x4-upscaler")


def restore(model: VideoModel) -> torch.Tensor:
    text = model.text(["the cat", ""])
    return Restorer(model, SETTINGS, (text[:1], text[1:]))(rand_pixels(1, 3, 16, 16), torch.zeros(1, 1, 64, 64), [0])


def test_these_weights_overflow_in_half_precision(folder: Path) -> None:
    autoencoder, latents = loud_model(folder).codec.autoencoder, randn(1, 4, 8, 8)
    assert bool(autoencoder.decode(latents).sample.isfinite().all())
    assert bool(autoencoder.half().decode(latents.half()).sample.isnan().any())


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_no_frame_is_lost(folder: Path, dtype: str) -> None:
    exact = restore(loud_model(folder))
    model = place(loud_model(folder), "cpu", dtype)
    assert next(model.codec.parameters()).dtype is (torch.float32 if dtype == "fp16" else torch.bfloat16)
    assert next(model.denoiser.parameters()).dtype is {"fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    output = restore(model)
    assert bool(output.isfinite().all())
    assert (output - exact).abs().mean() < (0.02 if dtype == "fp16" else 0.1)
    assert exact.std() > 0.1
