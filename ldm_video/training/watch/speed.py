"""Throughput and peak memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from ldm_video.core.memory import peak_resident

GIB = 2**30


class Speed(pl.Callback):
    """Log ``speed/clips_per_second``, ``speed/frames_per_second`` (over all processes) and ``memory/peak_gib``.

    Speeds are measured from the start of the first step after the last logged one, so validation, pictures and
    checkpoints are excluded if their intervals are multiples of ``log_every_n_steps``. Memory is the peak since the
    start of the process. Unlike Lightning's ``ThroughputMonitor``, this does not synchronise the GPU at every step.
    """

    def __init__(self) -> None:
        self.step = 0
        self.frames = self.clips = 0
        self.started: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None:
            self.started = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Mapping[str, Tensor],
        batch_idx: int,
    ) -> None:
        clips, frames = batch["hr"].shape[:2]  # b t 3 H W
        self.clips += clips * trainer.world_size
        self.frames += clips * frames * trainer.world_size
        if trainer.global_step == self.step:  # gradients are still being accumulated
            return
        self.step = trainer.global_step
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if self.step % every or self.started is None:
            return
        seconds = time.perf_counter() - self.started
        pl_module.log_dict(
            {
                "speed/clips_per_second": self.clips / seconds,
                "speed/frames_per_second": self.frames / seconds,
                "memory/peak_gib": peak_memory(pl_module.device) / GIB,
            }
        )
        self.clips, self.frames, self.started = 0, 0, None


def peak_memory(device: torch.device) -> int:
    """Return the peak bytes of tensors on a CUDA device, or of this process in main memory, since its start."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return peak_resident()
