"""Learning-rate schedules in Lightning's format: warm-up and cosine decay, with a pace for each parameter group."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Pace:
    """When and how fast a group of parameters is trained.

    Attributes:
        start: first step that trains the group; before it, gradients are dropped and the learning rate is 0.
        scale: factor on the learning rate.

    Raises ``ValueError`` unless ``start >= 0`` and ``scale > 0``.
    """

    start: int = 0
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.start < 0 or self.scale <= 0:
            raise ValueError(f"start must be 0 or more and scale positive, got {self.start} and {self.scale}")


FULL = Pace()


def warmup_cosine(
    optimizer: Optimizer, warmup: int, steps: int, floor: float = 0.02, paces: Sequence[Pace] = (FULL,)
) -> OptimizerLRSchedulerConfig:
    """Warm up linearly over ``warmup`` steps, then decay along a cosine to the fraction ``floor`` at step ``steps``.

    ``paces`` has one entry per parameter group of the optimizer; a group that starts late counts warm-up and cosine
    from its own start, and ends with the others.
    """

    def factor(step: int, pace: Pace) -> float:
        if step < pace.start:
            return 0.0
        trained, whole = step - pace.start, steps - pace.start
        warm = min(1.0, (trained + 1) / max(1, warmup))
        progress = min(1.0, max(0, trained - warmup) / max(1, whole - warmup))
        return pace.scale * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    scheduler = LambdaLR(optimizer, [partial(factor, pace=pace) for pace in paces])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def set_rates(scheduler: LambdaLR) -> None:
    """The rates of the step that is due. A checkpoint's are those of a schedule that may have had another length."""
    groups = scheduler.optimizer.param_groups
    for group, base, factor in zip(groups, scheduler.base_lrs, scheduler.lr_lambdas, strict=True):
        group["lr"] = base * factor(scheduler.last_epoch)
