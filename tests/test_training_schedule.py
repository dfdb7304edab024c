"""Learning rates: groups that begin late, runs that are made longer, and what groups are called."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from ldm_video.training.schedule import FULL, Pace, warmup_cosine
from ldm_video.training.stage import Stage

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log", "ignore:You're resuming from")


def factors(paces: list[Pace], warmup: int, steps: int) -> list[list[float]]:
    """Of each group, the factor on its rate at the steps from 0 to ``steps``."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in paces], lr=1.0)
    schedule = warmup_cosine(optimizer, warmup, steps, paces=paces)["lr_scheduler"]["scheduler"]
    rates = []
    for _ in range(steps + 1):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return [list(group) for group in zip(*rates, strict=True)]


def test_a_late_group_has_a_cosine_of_its_own() -> None:
    """As the decoder in x4_few_step.yaml, at a tenth of the length: from step 1000 of 1200 on."""
    (late,) = factors([Pace(1000)], warmup=100, steps=1200)
    assert late[999] == 0.0
    assert late[1000] == pytest.approx(0.01)  # the first step of its warm-up
    assert late[1099] == late[1100] == 1.0  # warm, and at the full rate
    assert late[1150] == pytest.approx(0.02 + 0.98 / 2)  # half-way from there to the end
    assert late[1200] == pytest.approx(0.02)


def test_a_group_that_begins_at_once_is_as_it_was() -> None:
    (early, _) = factors([Pace(scale=0.3), Pace(7)], warmup=4, steps=24)
    for step, rate in enumerate(early):
        warm = min(1.0, (step + 1) / 4)
        progress = min(1.0, max(0, step - 4) / 20)
        assert rate == 0.3 * warm * (0.02 + (1 - 0.02) * 0.5 * (1 + math.cos(math.pi * progress)))


class Line(Stage):
    """Two weights, whose loss is their sum. The second may have a pace of its own."""

    def __init__(self, pace: Pace = FULL) -> None:
        super().__init__(partial(torch.optim.AdamW, lr=1.0), warmup=2)
        self.weight, self.late = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        self.pace = pace

    def paces(self) -> list[tuple[str, Iterable[nn.Parameter], Pace]]:
        return [("late", [self.late], self.pace)]

    def training_step(self, batch: Tensor, index: int) -> Tensor:
        return (self.weight + self.late).sum()


class Rates(pl.Callback):
    """Keeps the first group's rate of each step."""

    def __init__(self) -> None:
        self.seen: dict[int, float] = {}

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        self.seen[trainer.global_step] = trainer.optimizers[0].param_groups[0]["lr"]


def train(
    stage: Stage, folder: Path, steps: int, last: Path | None = None, logger: CSVLogger | None = None
) -> tuple[dict[int, float], Path]:
    """The rates of the steps that are made, and the checkpoint after them."""
    rates = Rates()
    trainer = pl.Trainer(
        max_steps=steps, accelerator="cpu", enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1, logger=logger or False,
        callbacks=[rates, *([LearningRateMonitor("step")] if logger else [])],
    )  # fmt: skip
    trainer.fit(stage, DataLoader(torch.zeros(100, 1)), ckpt_path=last, weights_only=False)
    trainer.save_checkpoint(folder / "last.ckpt")
    return rates.seen, folder / "last.ckpt"


def test_a_run_that_is_made_longer_has_the_rates_of_the_new_length_at_once(tmp_path: Path) -> None:
    straight, _ = train(Line(), tmp_path, 8)
    _, last = train(Line(), tmp_path, 4)
    longer, _ = train(Line(), tmp_path, 8, last)
    assert longer == {step: rate for step, rate in straight.items() if step >= 4}


@pytest.mark.parametrize(("pace", "series"), [(FULL, {"lr-AdamW"}), (Pace(1, 0.5), {"lr-AdamW/rest", "lr-AdamW/late"})])
def test_groups_are_logged_by_name_after_a_resume_from_a_checkpoint_without_names_too(
    tmp_path: Path, pace: Pace, series: set[str]
) -> None:
    """A rate that all share keeps the plain name."""
    first, second = CSVLogger(tmp_path, version=1), CSVLogger(tmp_path, version=2)
    _, last = train(Line(pace), tmp_path, 2, logger=first)
    old = torch.load(last, weights_only=False)
    for group in old["optimizer_states"][0]["param_groups"]:
        group.pop("name", None)
    torch.save(old, last)
    train(Line(pace), tmp_path, 4, last, logger=second)
    for logger in (first, second):
        assert {name for name in logger.experiment.metrics_keys if name.startswith("lr-")} == series
