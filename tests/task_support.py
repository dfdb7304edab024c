"""What the tests of training tasks share: a batch, the three tasks, and a quiet trainer."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from ldm_video.diffusion.objective import Objective
from ldm_video.models.video_model import VideoModel
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.denoiser_task import DenoiserTask
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from tests.train_support import conditioned

ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def make_batch(clips: int = 2, frames: int = 3, side: int = 64, seed: int = 3) -> dict[str, Tensor]:
    """Smooth clips, low-res by area, and a hole in the middle."""
    generator = torch.Generator().manual_seed(seed)
    rough = torch.rand(clips, frames * 3, side // 8, side // 8, generator=generator) * 1.6 - 0.8
    hr = nn.functional.interpolate(rough, size=(side, side), mode="bicubic").clamp(-1, 1)
    lr = nn.functional.interpolate(hr, size=(side // 4, side // 4), mode="area")
    hole = torch.zeros(clips, frames, 1, side, side)
    hole[..., 20:36, 20:44] = 1
    return {
        "hr": hr.view(clips, frames, 3, side, side),
        "lr": lr.view(clips, frames, 3, side // 4, side // 4),
        "hole": hole,
    }


def codec_task(model: VideoModel, **options: float) -> CodecTask:
    return CodecTask(model.codec, PixelLoss(None), ADAMW, **options)


def denoiser_task(model: VideoModel, **options: float) -> DenoiserTask:
    return DenoiserTask(model, partial(Objective, draw="logit_normal"), ADAMW, **conditioned(options))


def few_step_task(model: VideoModel, **options: float) -> FewStepTask:
    return FewStepTask(model, PixelLoss(None), ADAMW, **conditioned(options))


def quiet_trainer(**options: Any) -> pl.Trainer:
    return pl.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_steps": 1, **options},
    )  # fmt: skip
