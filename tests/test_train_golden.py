"""Golden loss curves: the first steps of each stage, on the smallest model, as they were when they were last looked at.

A change that moves a curve on purpose (an objective, an initialisation, the order of random numbers) writes it anew:

    python -m tests.test_train_golden

and the commit says why it moved. The tolerance is far above what another CPU or thread count changes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

from ldm_video.diffusion.objective import Objective
from ldm_video.training.codec_task import CodecTask
from ldm_video.training.denoiser_task import DenoiserTask
from ldm_video.training.few_step_task import FewStepTask
from ldm_video.training.losses import PixelLoss
from ldm_video.training.model_stage import Conditioning
from ldm_video.training.stage import Stage
from tests.cli_support import tiny_model

GOLDEN = Path(__file__).parent / "golden"
STEPS = 10
TOLERANCE = 1e-3  # relative

ADAMW = partial(torch.optim.AdamW, lr=1e-3)
STAGES: dict[str, Callable[[], Stage]] = {
    "codec": lambda: CodecTask(tiny_model().codec, PixelLoss(None), ADAMW, known_share=0.3, warmup=3),
    "denoiser": lambda: DenoiserTask(
        tiny_model(), partial(Objective, draw="logit_normal"), ADAMW, Conditioning(0.3), warmup=3
    ),
    "few_step": lambda: FewStepTask(tiny_model(), PixelLoss(None), ADAMW, conditioning=Conditioning(0.3), warmup=3),
}


class _Losses(pl.Callback):
    """Remembers the loss of every step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))


def clip(index: int) -> dict[str, torch.Tensor]:
    """A smooth clip whose content drifts, from formulas alone: no decoder and no random numbers."""
    t, y, x = (torch.arange(n, dtype=torch.float32) for n in (3, 64, 64))
    t, y, x = t[:, None, None, None], y[:, None], x
    shade = torch.arange(3, dtype=torch.float32)[:, None, None]  # 3 1 1
    hr = 0.8 * torch.sin(0.05 * (x + 2 * t) + index + shade) * torch.cos(0.09 * y - 0.3 * index)  # t 3 H W
    lr = torch.nn.functional.avg_pool2d(hr, 4)
    hole = ((y > 16) & (y < 30) & (x > 20 + 3 * t + index) & (x < 44 + index)).float()  # t 1 H W
    return {"hr": hr, "lr": lr, "hole": hole}


def curve(stage: str) -> list[float]:
    """The losses of the first steps, in batches of two clips."""
    recorder = _Losses()
    trainer = pl.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        gradient_clip_val=1.0,
        callbacks=[recorder],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    clips: Any = [clip(index) for index in range(2 * STEPS)]
    trainer.fit(STAGES[stage](), DataLoader(clips, batch_size=2))
    return recorder.losses


@pytest.mark.parametrize("stage", list(STAGES))
def test_the_loss_curve_is_the_golden_one(stage: str) -> None:
    path = GOLDEN / f"{stage}_tiny.txt"
    assert path.is_file(), f"{path} is missing; restore it, or write it anew: python -m tests.{Path(__file__).stem}"
    golden = [float(line) for line in path.read_text().splitlines()]
    assert len(golden) == STEPS and len(set(golden)) == STEPS
    assert curve(stage) == pytest.approx(golden, rel=TOLERANCE)


def write() -> None:
    GOLDEN.mkdir(exist_ok=True)
    for stage in STAGES:
        path = GOLDEN / f"{stage}_tiny.txt"
        path.write_text("".join(f"{loss:.6f}\n" for loss in curve(stage)))
        print(path)


if __name__ == "__main__":
    write()
