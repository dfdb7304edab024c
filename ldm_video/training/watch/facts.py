"""Log a run's configuration and code revision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl


class Facts(pl.Callback):
    """Log ``facts`` to every logger as hyper-parameters when the run starts."""

    def __init__(self, facts: Mapping[str, Any]) -> None:
        self.facts = dict(facts)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for logger in trainer.loggers:
            logger.log_hyperparams(self.facts)
