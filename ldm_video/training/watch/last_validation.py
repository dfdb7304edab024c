"""The validation that a stop would lose."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from ldm_video.core.files import atomic_path

VALIDATED = "validated"  # a file of the output folder: the step that was validated last


class LastValidation(pl.Callback):
    """On resume, run the validation that was due after the checkpoint's step, if it did not finish.

    Lightning writes a step's checkpoint before it validates. A run that is stopped in between resumes after that step
    and would never log its validation. Weights, their average and all random states are left unchanged.

    Args:
        folder: the run's output, where the number of the last validated step is kept.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / VALIDATED

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            if trainer.is_global_zero:
                self.file.unlink(missing_ok=True)  # of another run in this folder
        elif self.is_missing(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # from its first batch
            trainer.validating = True
            with isolate_rng():
                loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            with atomic_path(self.file) as temporary:
                temporary.write_text(f"{trainer.global_step}\n", encoding="utf-8")

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Return whether the last step is due for a validation that has not finished. Call it in all processes."""
        every = trainer.val_check_batch  # batches
        if not (trainer.enable_validation and trainer.check_val_every_n_epoch is None and isinstance(every, int)):
            return False
        if (trainer.fit_loop.epoch_loop.total_batch_idx + 1) % every:
            return False
        return bool(trainer.strategy.broadcast(self._last() != trainer.global_step))

    def _last(self) -> int | None:
        try:
            return int(self.file.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
