"""What happens beside batch -> loss -> log."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl


class DrawAnew(pl.Callback):
    """Tell the training set its epoch, so that every epoch draws other clips, crops and holes.

    The set must not live on in persistent workers, which would not hear of it.
    """

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Call ``dataset.set_epoch(epoch)`` where there is such a method."""
        dataset: Any = getattr(trainer.train_dataloader, "dataset", None)
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(trainer.current_epoch)
