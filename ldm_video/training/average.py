"""The moving average of the weights."""

from __future__ import annotations

import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

WARM_UP = 10  # steps


class WarmAverage(WeightAveraging):
    """An exponential moving average whose memory grows with the run: ``min(decay, (1 + n) / (10 + n))`` at step ``n``.

    With a constant decay of 0.998 the first step's weights would still be more than half of the average after 300
    steps. The ramp is that of TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Tensor, current: Tensor, count: Tensor | int) -> Tensor:
            if not averaged.is_floating_point():  # numbers of positions and the like
                return current
            n = float(count)
            return torch.lerp(averaged, current.to(averaged), 1 - min(decay, (1 + n) / (WARM_UP + n)))

        super().__init__(use_buffers=True, avg_fn=average)
