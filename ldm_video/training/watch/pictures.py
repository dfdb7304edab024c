"""Restore fixed clips during training: a strip of pictures, a short video and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ldm_video.core.tensors import size_of
from ldm_video.training.loggers import log_media
from ldm_video.training.stage import Stage
from ldm_video.training.watch.undisturbed import averaged_weights, undisturbed
from ldm_video.video_io import VideoWriter

Metric = Callable[[np.ndarray, np.ndarray], float]
"""``metric(output, reference)`` of one frame ``h w c`` in [0, 1]."""

NAME = "restored"
_RATE = Fraction(8)  # training clips are short: play them slowly


class Pictures(pl.Callback):
    """Restore fixed clips with the current (averaged) weights every ``every`` steps and after the last.

    Each clip is a row of input | output | reference. The middle frame is written to ``folder/step_00000500.png``, the
    clip to ``folder/step_00000500.mp4``. Both go to the loggers, with each metric's mean over frames, then clips, as
    ``restored/NAME``. Only process 0 does this, without collective calls; the others wait at the next gradient
    reduction.

    Args:
        folder: folder of the files.
        clips: items as in training, all of the same size and length. The output depends only on them and the weights.
        every: interval in steps, 1 or more, else ``ValueError``.
        metrics: metrics by name; None leaves one out. Each is called once on construction, to fail early.
    """

    def __init__(
        self, folder: Path, clips: Dataset, every: int = 500, metrics: Mapping[str, Metric | None] | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be 1 step or more, not {every}; watch=null turns the pictures off")
        self.folder, self.clips, self.every = folder, clips, every
        self.metrics = {name: metric for name, metric in (metrics or {}).items() if metric is not None}
        self.step = 0
        grey = np.full((64, 64, 3), 0.5, np.float32)
        for metric in self.metrics.values():
            metric(grey, grey)

    @cached_property
    def batches(self) -> list[Mapping[str, Any]]:
        """Batches of one clip, so that restoring takes no more memory than a training step."""
        return [default_collate([self.clips[index]]) for index in range(len(self.clips))]  # type: ignore[arg-type]

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.step:  # gradients are still being accumulated
            return
        self.step = trainer.global_step
        due = self.step % self.every == 0 or self.step == trainer.max_steps
        if due and trainer.is_global_zero:
            assert isinstance(pl_module, Stage)
            self.look(trainer, pl_module)

    def look(self, trainer: pl.Trainer, stage: Stage) -> None:
        """Restore the clips, compute the metrics, and write and log the results."""
        precision = trainer.precision_plugin
        with averaged_weights(trainer, stage), undisturbed(stage):
            rows, scores = [], []
            for batch in self.batches:
                placed = precision.convert_input(trainer.strategy.batch_to_device(batch, stage.device))
                with precision.forward_context():
                    output = stage.restore(placed).float().clamp(-1, 1).cpu()[0]  # t 3 H W
                rows.append(row(batch, output))
                scores.append(measure(self.metrics, output, batch["hr"][0]))
        grid = torch.cat(rows, dim=-2)  # t 3 (clips H) (3 W)
        strip, video = (self.folder / f"step_{self.step:08d}{suffix}" for suffix in (".png", ".mp4"))
        write(strip, grid[len(grid) // 2 :][:1])
        write(video, grid)
        if scores:
            means = {f"{NAME}/{name}": float(np.mean([score[name] for score in scores])) for name in self.metrics}
            for logger in trainer.loggers:
                logger.log_metrics(means, step=self.step)
        log_media(trainer.loggers, NAME, strip, video, self.step)


def row(batch: Mapping[str, Tensor], output: Tensor) -> Tensor:
    """Return input, output and reference of a batch of one clip, side by side: ``t 3 H (3 W)`` in [-1, 1].

    The input is upsampled with nearest neighbour and mid-grey in the hole.
    """
    hr, lr, hole = batch["hr"][0], batch["lr"][0], batch["hole"][0]
    large = F.interpolate(lr, size=hr.shape[-2:], mode="nearest-exact") * (1 - hole)  # t 3 h w -> t 3 H W
    return torch.cat([large, output, hr], dim=-1)


def measure(metrics: Mapping[str, Metric], output: Tensor, reference: Tensor) -> dict[str, float]:
    """Return each metric's mean over the frames of two clips ``t 3 H W`` in [-1, 1]."""
    made, true = (rearrange((x + 1) / 2, "t c h w -> t h w c").numpy() for x in (output, reference))
    return {
        name: float(np.mean([metric(a, b) for a, b in zip(made, true, strict=True)]))
        for name, metric in metrics.items()
    }


def write(path: Path, frames: Tensor) -> None:
    """Write frames ``t 3 h w`` in [-1, 1] atomically, as a video or (one frame) a picture, by the path suffix."""
    with VideoWriter(path, size_of(frames), None, _RATE, overwrite=True) as writer:
        for frame in frames.nan_to_num():  # show a diverged model as grey
            writer.write(frame)
