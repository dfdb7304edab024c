"""What the tests of stages of the whole model share: the two tasks, and short training."""

from __future__ import annotations

import copy
from typing import Any

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm_video.diffusion.objective import Objective
from ldm_video.models.video_model import VideoModel
from ldm_video.training.denoiser_task import DenoiserTask
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from ldm_video.training.model_stage import ModelStage
from tests.task_support import ADAMW, codec_task, make_batch
from tests.train_support import conditioned


def denoiser_task(model: VideoModel, **options: Any) -> DenoiserTask:
    return DenoiserTask(model, Objective, ADAMW, **conditioned(options))


def few_step_task(model: VideoModel, **options: Any) -> FewStepTask:
    pixel_loss = options.pop("pixel_loss", PixelLoss(None))
    return FewStepTask(model, pixel_loss, ADAMW, **conditioned({"step_shares": [1.0], **options}))


def fit(task: pl.LightningModule, steps: int, **options: Any) -> pl.Trainer:
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **options,
    )  # fmt: skip
    trainer.fit(task, DataLoader([make_batch(seed=seed) for seed in range(steps)], batch_size=None))
    return trainer


def moved(task: ModelStage, steps: int) -> dict[str, bool]:
    """Whether each parameter that the task may train has another value after ``steps``."""
    before = copy.deepcopy(dict(task.named_parameters()))
    fit(task, steps)
    return {name: not torch.equal(before[name], p) for name, p in task.named_parameters() if p.requires_grad}


TASKS = {"codec": codec_task, "denoiser": denoiser_task, "few_step": few_step_task}
