"""Train the denoiser: predict the process's target from noisy latents and evidence."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ldm_video.diffusion.objective import Objective
from ldm_video.diffusion.process import Process
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import Draws
from ldm_video.training.model_stage import Condition, Conditioning, ModelStage
from ldm_video.training.schedule import FULL, Pace
from ldm_video.training.stage import MakeOptimizer


class DenoiserTask(ModelStage):
    """Batch -> noisy latents + evidence (+ text) -> prediction -> loss.

    Args:
        objective: builds the loss weighting and the timestep distribution from the process of the model's scheduler.
        model, optimizer, conditioning, spatial, warmup, seed: see
            :class:`~ldm_video.training.model_stage.ModelStage`.
    """

    def __init__(
        self,
        model: VideoModel,
        objective: Callable[[Process], Objective],
        optimizer: MakeOptimizer,
        conditioning: Conditioning = Conditioning(),  # noqa: B008 (frozen)
        spatial: Pace | None = FULL,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, conditioning, spatial, warmup, seed)
        self.objective = objective(Process.from_scheduler(model.scheduler))

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        draws = self.draws(batch, index)
        loss, t = self._loss(batch, self.condition(batch, draws), draws)
        self.log("train/loss", loss.mean(), prog_bar=True)
        quarter = t * 4 // len(self.objective.process)
        for q in quarter.unique():
            self.log(f"train/loss_t{int(q)}of4", loss[quarter == q].mean())
        return self.finite(loss.mean(), batch)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        draws = self.draws(batch, index, "val")
        loss, _ = self._loss(batch, self.condition(batch, draws), draws)
        self.log("val/loss", loss.mean(), prog_bar=True, sync_dist=True)

    def _loss(self, batch: Mapping[str, Tensor], condition: Condition, draws: Draws) -> tuple[Tensor, Tensor]:
        """Return the weighted loss per clip (b,) and the timestep indices (b,), the latter on the CPU."""
        with torch.no_grad():
            latents = self.model.codec.encode(batch["hr"], condition.evidence)  # b t c h w
        noise = self.noise(batch["hr"], draws).to(latents)
        drawn = draws.each(lambda generator: self.objective.sample_timesteps(1, generator))  # b
        t = drawn.to(latents.device)
        noisy = self.objective.process.noisy(latents, noise, t)
        prediction = self.predict(noisy, self.objective.process.timestep_of(t), condition)
        loss, weight = self.objective.loss(prediction, latents, noise, t)
        return loss * weight, drawn
