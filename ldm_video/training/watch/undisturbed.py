"""Look at a model in the middle of its training without leaving a trace."""

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
    """Evaluation mode, no gradients; each module's own mode and every global random state are as before afterwards."""
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
    """The averaged weights in the model's place, where the run averages, as Lightning does it for validation.

    Copied there and back, so both are bit for bit what they were.
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
