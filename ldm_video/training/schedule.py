"""Learning-rate schedules, in Lightning's form: all parameters warm up and follow a cosine, each at its own pace."""

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
        start: the step from which it is trained; until then its gradients are dropped and its rate is 0.
        scale: factor on the learning rate.
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
    """Linear warm-up over ``warmup`` steps, then a cosine down to ``floor`` of the rate at ``steps``.

    ``paces`` has one for each of the optimizer's groups; one that starts late warms up when it starts.
    """

    def factor(step: int, pace: Pace) -> float:
        if step < pace.start:
            return 0.0
        warm = min(1.0, (step - pace.start + 1) / max(1, warmup))
        progress = min(1.0, max(0, step - warmup) / max(1, steps - warmup))
        return pace.scale * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress)))

    scheduler = LambdaLR(optimizer, [partial(factor, pace=pace) for pace in paces])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
