"""Train the denoiser: predict the process's target from noisy latents and evidence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ldm_video.diffusion.noise import batch_noise
from ldm_video.diffusion.objective import Objective
from ldm_video.diffusion.process import Process
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import batch_evidence
from ldm_video.training.stage import MakeOptimizer, Stage


class DenoiserTask(Stage):
    """Batch -> noisy latents + evidence -> prediction -> loss.

    Args:
        model: the whole model; its codec (and text encoder) stay frozen.
        objective: makes weighting and draw of the noise levels from the process of the model's scheduler.
        known_share: share of clips with known high-res pixels.
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.
    """

    def __init__(
        self,
        model: VideoModel,
        objective: Callable[[Process], Objective],
        optimizer: MakeOptimizer,
        known_share: float = 0.1,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        if model.text is not None:
            raise ValueError("a model with a text encoder needs captioned clips, which this stage does not read yet")
        model.requires_grad_(False)
        model.denoiser.requires_grad_(True)
        self.model = model
        self.objective = objective(Process.from_scheduler(model.scheduler))
        self.known_share = known_share

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        loss, t = self._loss(batch, self.generator(index))
        self.log("train/loss", loss.mean(), prog_bar=True)
        quarter = t * 4 // len(self.objective.process)
        for q in quarter.unique():
            self.log(f"train/loss_t{int(q)}of4", loss[quarter == q].mean())
        return loss.mean()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        loss, _ = self._loss(batch, self.generator(index, "val"))
        self.log("val/loss", loss.mean(), prog_bar=True, sync_dist=True)

    def _loss(self, batch: dict[str, Tensor], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Weighted loss per clip (b,) and its timestep indices (b,)."""
        evidence = batch_evidence(batch, self.known_share, generator)
        with torch.no_grad():
            latents = self.model.codec.encode(batch["hr"])  # b t c h w
        noise = batch_noise(latents.shape, generator, self.model.shared_noise).to(latents)
        t = self.objective.sample_timesteps(latents.shape[0], generator).to(latents.device)  # b
        noisy = self.objective.process.noisy(latents, noise, t)
        prediction = self.model.predict(noisy, self.objective.process.timestep_of(t), evidence)
        loss, weight = self.objective.loss(prediction, latents, noise, t)
        return loss * weight, t
