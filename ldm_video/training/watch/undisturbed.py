"""Evaluate a model during training without side effects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from pytorch_lightning.utilities.seed import isolate_rng
from torch import nn


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Switch to evaluation mode without gradients; afterwards restore each module's mode and all global RNG states."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        with isolate_rng(), torch.no_grad():
            yield
    finally:
        for part, mode in modes.items():  # not train(True): a frozen part may have been in evaluation mode
            part.training = mode


@contextmanager
def averaged_weights(trainer: pl.Trainer, stage: pl.LightningModule) -> Iterator[None]:
    """Put the averaged weights, if the run keeps any, into the model, as in validation.

    Weights are copied and restored, so both sets are bit-identical afterwards.
    """
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]
    averages = [callback for callback in callbacks if isinstance(callback, WeightAveraging)]
    for callback in averages:
        callback.on_validation_epoch_start(trainer, stage)
    try:
        yield
    finally:
        for callback in averages:
            callback.on_validation_epoch_end(trainer, stage)
