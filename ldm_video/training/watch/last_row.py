"""Preserve the row of the log that a kill would lose."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl

_STATE = "last_row"


class LastRow(pl.Callback):
    """Store the logged row of a checkpoint's step in the checkpoint; a run that resumes from it logs this row first.

    Lightning writes a step's row after its checkpoint. If a run is killed between the two, the resumed run does not
    repeat that step, and its log would lack the row.
    """

    def __init__(self) -> None:
        self.row: dict[str, float] = {}
        self.step = 0

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if trainer.global_step % every:
            return  # this step is not logged
        # Validation writes its own rows when it ends.
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
