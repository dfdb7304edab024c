"""The validation that a stop would lose."""

from __future__ import annotations

from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.utilities.seed import isolate_rng

from ldm_video.core.files import atomic_path

VALIDATED = "validated"  # a file of the output folder: the step that was validated last


class LastValidation(pl.Callback):
    """Validates before the first step where the checkpoint's step was due for it and has not been validated yet.

    Lightning writes a step's checkpoint before it validates: a run that is stopped between the two has that step's
    weights, does not do it again, and would go on without its row. Weights, their average and every random state are
    as before afterwards.

    Args:
        folder: the run's output, which keeps the number of the step that was validated last.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / VALIDATED

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.global_step == 0:
            if trainer.is_global_zero:
                self.file.unlink(missing_ok=True)  # of another run in this folder
        elif self.is_missing(trainer):
            loop = trainer.fit_loop.epoch_loop.val_loop
            loop.restarting = False  # it begins, and does not go on in the middle
            trainer.validating = True
            with isolate_rng():
                loop.run()
            trainer.training = True

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and not trainer.sanity_checking:
            with atomic_path(self.file) as temporary:
                temporary.write_text(f"{trainer.global_step}\n", encoding="utf-8")

    def is_missing(self, trainer: pl.Trainer) -> bool:
        """Whether the step that was done last is due for a validation that has not been made. All processes ask."""
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
