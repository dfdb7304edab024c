"""Lightning's trainer, with our checkpoints, loggers and callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import LearningRateMonitor, TQDMProgressBar

from ldm_video.config import build
from ldm_video.core.errors import UserError
from ldm_video.core.revision import git_revision
from ldm_video.training.average import WarmAverage
from ldm_video.training.checkpoints import AtomicCheckpointIO, BetweenSteps
from ldm_video.training.loggers import build_loggers
from ldm_video.training.preemption import Preemption
from ldm_video.training.same_run import KeepsConfig
from ldm_video.training.watch import Facts, GradientNorms, LastRow, LastValidation, Speed


def build_trainer(
    config: DictConfig,
    output: Path,
    watchers: Sequence[pl.Callback] = (),
    anew: bool = False,
    origin: str | None = None,
) -> pl.Trainer:
    """Build the trainer from ``config.trainer``; ``watchers`` run after weight averaging and before checkpoints.

    With ``anew``, the loggers start a new run too, whatever ``output`` holds. ``origin`` is stored in the checkpoints.
    Raises ``UserError`` for trainer options that Lightning rejects.
    """
    every = config.checkpoint_every
    facts: Any = OmegaConf.to_container(config, resolve=True)
    callbacks: list[pl.Callback] = [
        BetweenSteps(output / "checkpoints", every_n_train_steps=every, save_last=True, enable_version_counter=False),
        *([] if config.trainer.get("enable_progress_bar") is False else [TQDMProgressBar(refresh_rate=10)]),
        KeepsConfig(facts, origin),
        Facts({**facts, "git": git_revision()}),
        LearningRateMonitor("step"),
        GradientNorms(),
        Speed(),
        LastRow(),
    ]
    if config.ema:
        callbacks.append(WarmAverage(config.ema))
    callbacks += [*watchers, Preemption(), LastValidation(output)]
    loggers = build_loggers(config.logger, config.name, output, anew)
    try:
        # ClipOrder itself distributes the clips over the processes.
        return build(
            trainer_options(config.trainer),
            callbacks=callbacks,
            logger=loggers,
            plugins=[AtomicCheckpointIO()],
            default_root_dir=str(output),
            use_distributed_sampler=False,
        )
    except MisconfigurationException as error:
        raise UserError(f"the trainer section cannot be used here: {str(error).splitlines()[0]}") from error


def trainer_options(section: DictConfig) -> dict[str, Any]:
    """Return the trainer's section, with an integer ``val_check_interval`` converted from steps to batches."""
    options = cast(dict[str, Any], OmegaConf.to_container(section, resolve=True))
    every = options.get("val_check_interval")
    if type(every) is int:
        options["val_check_interval"] = every * options.get("accumulate_grad_batches", 1)
    return options
