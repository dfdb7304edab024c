"""Fine-tune for few steps: one jump to the clean latents, judged in pixels through the decoder.

DOVE (arXiv:2505.16239) trains one step at a fixed timestep, first in latents, then in pixels. Here the timestep is
drawn from the few that the sampler will visit; at all but the first, the noisy latents are made from the model's own
jump (as the sampler will make them), not from the truth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm_video.core.evidence import Evidence
from ldm_video.diffusion.noise import batch_noise
from ldm_video.diffusion.process import Process
from ldm_video.diffusion.sampler import sampling_timesteps
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import batch_evidence
from ldm_video.training.losses import PixelLoss, psnr
from ldm_video.training.stage import MakeOptimizer, Stage


class FewStepTask(Stage):
    """Batch -> one jump -> pixels -> loss. Trains the denoiser and the decoder together.

    Args:
        model: the whole model; its encoder (and text encoder) stay frozen.
        pixel_loss: L1, perceptual and motion terms.
        step_shares: how often the jump starts at the first, second, ... of ``len(step_shares)`` sampling steps.
        latent_weight: weight of the clean latents' mean squared error; 0 leaves them free (and the encoder idle).
        known_share: share of clips with known high-res pixels.
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.
    """

    def __init__(
        self,
        model: VideoModel,
        pixel_loss: PixelLoss,
        optimizer: MakeOptimizer,
        step_shares: Sequence[float] = (0.7, 0.1, 0.1, 0.1),
        latent_weight: float = 0.05,
        known_share: float = 0.1,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        model.requires_grad_(False)
        model.denoiser.requires_grad_(True)
        for parameter in model.codec.decoder_parameters():
            parameter.requires_grad_(True)
        self.model = model
        self.process = Process.from_scheduler(model.scheduler)
        self.timesteps = sampling_timesteps(model.scheduler, len(step_shares))  # from the noisiest down
        self.pixel_loss = pixel_loss
        self.step_shares = torch.tensor(step_shares)
        self.latent_weight = latent_weight
        self.known_share = known_share

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        generator = self.generator(index)
        evidence = batch_evidence(batch, self.known_share, generator)
        step = int(torch.multinomial(self.step_shares, 1, generator=generator))
        clean = self._jump(self._latent_shape(batch["hr"]), step, evidence, generator)
        terms = self.pixel_loss(self.model.codec.decode(clean, evidence), batch["hr"], generator)
        if self.latent_weight:
            with torch.no_grad():
                latents = self.model.codec.encode(batch["hr"])  # b t c h w
            terms["latent"] = self.latent_weight * F.mse_loss(clean, latents)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return loss

    def _latent_shape(self, pixels: Tensor) -> tuple[int, ...]:
        """Pixels ``b t 3 H W`` -> the shape ``b t c h w`` of their latents."""
        b, t, _, height, width = pixels.shape
        codec = self.model.codec
        return b, t, codec.latent_channels, height // codec.factor, width // codec.factor

    def _jump(self, shape: tuple[int, ...], step: int, evidence: Evidence, generator: torch.Generator) -> Tensor:
        """Clean latents predicted at sampling step ``step``, from noise or from an own earlier jump."""
        noisy = batch_noise(shape, generator, self.model.shared_noise).to(evidence.guess)
        if step > 0:
            with torch.no_grad():
                own = self._predict_clean(noisy, self.timesteps[0], evidence)
            # A deterministic sampler that comes from this noise by one jump stands exactly here.
            noisy = self.process.noisy(own, noisy, self.timesteps[step])
        return self._predict_clean(noisy, self.timesteps[step], evidence)

    def _predict_clean(self, noisy: Tensor, timestep: Tensor, evidence: Evidence) -> Tensor:
        return self.process.to_x0(noisy, self.model.predict(noisy, timestep.to(noisy.device), evidence), timestep)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        generator = self.generator(index, "val")
        evidence = batch_evidence(batch, 0.0, generator)
        clean = self._jump(self._latent_shape(batch["hr"]), 0, evidence, generator)
        output = self.model.codec.decode(clean, evidence).clamp(-1, 1)
        self.log("val/psnr", psnr(output, batch["hr"]), prog_bar=True, sync_dist=True)
        terms = self.pixel_loss(output, batch["hr"], generator)
        self.log_dict({f"val/{name}": value for name, value in terms.items()}, sync_dist=True)
