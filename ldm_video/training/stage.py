"""What every training stage shares: its optimizer, its learning rate, its random numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from ldm_video.training.batches import step_generator
from ldm_video.training.schedule import warmup_cosine

MakeOptimizer = Callable[[Iterable[Tensor]], Optimizer]


class Stage(pl.LightningModule):
    """A Lightning module that trains whatever of its parameters takes gradients.

    Args:
        optimizer: makes an optimizer of parameters.
        warmup: steps of linear warm-up before the cosine, which ends at the trainer's ``max_steps``.
        seed: of the random numbers of each batch.
    """

    def __init__(self, optimizer: MakeOptimizer, warmup: int = 100, seed: int = 0) -> None:
        super().__init__()
        self.make_optimizer = optimizer
        self.warmup = warmup
        self.seed = seed

    def generator(self, batch_index: int, purpose: str = "train") -> torch.Generator:
        """The random numbers of a batch: a pure function of (seed, batch, rank, purpose)."""
        return step_generator(self.seed, batch_index, self.global_rank, purpose)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimizer of the parameters that take gradients, warmed up and then led down a cosine."""
        optimizer = self.make_optimizer(p for p in self.parameters() if p.requires_grad)
        return warmup_cosine(optimizer, self.warmup, self.trainer.max_steps)
