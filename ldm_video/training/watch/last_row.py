"""The row of the log that a kill would lose."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

_STATE = "last_row"


class LastRow(pl.Callback):
    """Keeps the logged row of a checkpoint's step in the checkpoint; a run that goes on from it begins its log with it.

    Lightning writes a step's row after the step's checkpoint: a run that is killed between the two has the weights of
    that step, does not do it again, and its log would have a gap there for ever.
    """

    def __init__(self) -> None:
        self.row: dict[str, float] = {}
        self.step = 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if trainer.global_step % every:
            return  # no row of this step is written
        # Validation writes rows of its own, once it has ended.
        row = {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("val/")}
        checkpoint[_STATE] = {"row": row, "step": trainer.global_step - 1}  # rows are counted from 0

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        kept = checkpoint.get(_STATE, {})
        self.row, self.step = kept.get("row", {}), kept.get("step", 0)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.row:
            for logger in trainer.loggers:
                logger.log_metrics(self.row, step=self.step)
