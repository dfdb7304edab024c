"""Exponential moving average (EMA) of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor

WARM_UP = 10  # steps


class WarmAverage(WeightAveraging):
    """Exponential moving average with decay warm-up: the decay at step ``n`` is ``min(decay, (1 + n) / (10 + n))``.

    With a constant decay of 0.998, the first step's weights would still make up more than half of the average after
    300 steps. The warm-up is that of TensorFlow's ``ExponentialMovingAverage(num_updates=...)``.

    For validation, the average is copied into the model and the model's own weights are restored afterwards.
    Lightning swaps both by value instead, which rounds a float32 average if the model is in bfloat16.
    """

    def __init__(self, decay: float) -> None:
        def average(averaged: Sequence[Tensor], current: Sequence[Tensor], count: Tensor | int) -> None:
            n = float(count)  # synchronises with the GPU: once per group of tensors, not once per tensor
            weight = 1 - min(decay, (1 + n) / (WARM_UP + n))
            for mean, new in zip(averaged, current, strict=True):
                if mean.is_floating_point():
                    mean.lerp_(new.to(mean), weight)
                else:  # integer buffers, such as position ids
                    mean.copy_(new)

        super().__init__(use_buffers=True, multi_avg_fn=average)
        self._own: list[Tensor] = []  # the model's own weights while the average is in place

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        # The model is still on the CPU. An average that stayed there would cost a copy of all weights at every step.
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None:
            self._own = [x.detach().clone() for x in _tensors(pl_module)]
            self._copy_average_to_current(pl_module)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self._average_model is not None:
            with torch.no_grad():
                for x, own in zip(_tensors(pl_module), self._own, strict=True):
                    x.copy_(own)
            self._own = []


def _tensors(module: torch.nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
