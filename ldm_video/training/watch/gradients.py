"""Gradient norms, by part of the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class GradientNorms(pl.Callback):
    """Log ``gradient/PART``, the L2 norm before clipping of each part that has a gradient, at every logged step.

    The parts are the ``spatial`` and ``temporal`` layers of the denoiser, and the ``codec``.
    """

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        every = max(1, trainer.log_every_n_steps)  # type: ignore[attr-defined]
        if (trainer.global_step + 1) % every:
            return
        for name, parameters in parts(pl_module).items():
            gradients = [p.grad for p in parameters if p.grad is not None]
            if gradients:
                pl_module.log(f"gradient/{name}", torch.nn.utils.get_total_norm(gradients))


def parts(stage: pl.LightningModule) -> dict[str, Iterable[Tensor]]:
    """Return the parameters of a stage's model by part, or of its codec if it has no model."""
    model = getattr(stage, "model", None)
    if model is None:
        return {"codec": cast(nn.Module, stage.codec).parameters()}
    return {
        "spatial": model.denoiser.spatial_parameters(),
        "temporal": model.denoiser.temporal_parameters(),
        "codec": model.codec.parameters(),
    }
