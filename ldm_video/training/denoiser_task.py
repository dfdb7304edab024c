"""Train the denoiser: predict the process's target from noisy latents and evidence."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer

from ldm_video.diffusion.noise import batch_noise
from ldm_video.diffusion.objective import Objective
from ldm_video.diffusion.process import Process
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import batch_evidence, step_generator
from ldm_video.training.schedule import warmup_cosine


class DenoiserTask(pl.LightningModule):
    """Batch -> noisy latents + evidence -> prediction -> loss.

    Args:
        model: the whole model; its codec (and text encoder) stay frozen.
        objective: makes weighting and draw of the noise levels from the process of the model's scheduler.
        optimizer: makes an optimizer of parameters.
        known_share: share of clips with known high-res pixels.
        warmup: steps of linear warm-up before the cosine.
        seed: of the step's random numbers.
    """

    def __init__(
        self,
        model: VideoModel,
        objective: Callable[[Process], Objective],
        optimizer: Callable[[Iterable[Tensor]], Optimizer],
        known_share: float = 0.1,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__()
        model.codec.requires_grad_(False).eval()
        self.model = model
        self.objective = objective(Process.from_scheduler(model.scheduler))
        self.make_optimizer = optimizer
        self.known_share = known_share
        self.warmup = warmup
        self.seed = seed

    def training_step(self, batch: dict[str, Tensor], _: int) -> Tensor:
        loss, t = self._loss(batch, step_generator(self.seed, self.global_step, self.global_rank))
        self.log("train/loss", loss.mean(), prog_bar=True)
        quarter = t * 4 // len(self.objective.process)
        for q in quarter.unique():
            self.log(f"train/loss_t{int(q)}of4", loss[quarter == q].mean())
        return loss.mean()

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        loss, _ = self._loss(batch, step_generator(self.seed, index, self.global_rank, "val"))
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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = self.make_optimizer(p for p in self.model.denoiser.parameters() if p.requires_grad)
        return warmup_cosine(optimizer, self.warmup, int(self.trainer.estimated_stepping_batches))
