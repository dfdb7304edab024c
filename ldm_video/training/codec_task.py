"""Train the codec: reconstruct the high-res clip from its degraded latents and the evidence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_video.core.checks import number
from ldm_video.models.codec import BasisCodec
from ldm_video.training.batches import batch_evidence
from ldm_video.training.losses import PixelLoss, psnr
from ldm_video.training.order import joint
from ldm_video.training.stage import MakeOptimizer, Stage


class CodecTask(Stage):
    """Batch -> latents + evidence -> pixels -> loss.

    A denoiser's latents are attenuated and not quite clean. To make the decoder robust to this, it is trained on
    ``(1 - s) latents + s latent_noise noise``, with ``s`` drawn uniformly from [0, 1) for each clip.

    Args:
        codec: the codec whose decoder is trained.
        pixel_loss: L1, perceptual and motion terms.
        latent_noise: standard deviation of the noise that replaces the latents at ``s = 1``.
        known_share: fraction of clips with known high-res pixels (see :func:`batch_evidence`).
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.
    """

    def __init__(
        self,
        codec: BasisCodec,
        pixel_loss: PixelLoss,
        optimizer: MakeOptimizer,
        latent_noise: float = 0.3,
        known_share: float = 0.1,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        codec.requires_grad_(False)  # freezes a paired codec's restorer too, whose output no loss here depends on
        for parameter in codec.decoder_parameters():
            parameter.requires_grad_(True)
        self.codec = codec
        self.pixel_loss = pixel_loss
        self.latent_noise = number("latent_noise", latent_noise, 0, float("inf"))
        self.known_share = number("known_share", known_share, 0, 1)

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        draws = self.draws(batch, index)
        hr = batch["hr"]
        evidence = batch_evidence(batch, self.known_share, draws, colour_shift=self.codec.colour_shift)
        raw = self.codec.project(hr, evidence)
        # The first batches form a plain mean, which converges at once. Use the larger count: with gradient
        # accumulation `index` runs ahead of the step, and under `overfit_batches` it stays 0.
        seen = max(index, self.global_step)
        self.codec.track_scale(joint(raw), momentum=max(0.02, 1 / (seen + 1)))
        latents = self.codec.encode(hr, evidence).to(hr)  # float32 under autocast too
        worse = draws.rand(1, 1, 1, 1).to(hr)
        latents = torch.lerp(latents, self.latent_noise * draws.randn(*latents.shape[1:]).to(hr), worse)
        terms = self.pixel_loss(self.codec.decode(latents, evidence), hr, draws.step, evidence.guess)
        return self.total(terms, batch)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        output = self.restore(batch).clamp(-1, 1)
        self.log("val/psnr", psnr(output, batch["hr"]), prog_bar=True, sync_dist=True)

    @torch.no_grad()
    def restore(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Reconstruct the clips from their own latents and the evidence: ``b t 3 H W``."""
        evidence = batch_evidence(batch, 0.0, self.draws(batch, 0, "restore"), colour_shift=self.codec.colour_shift)
        return self.codec.decode(self.codec.encode(batch["hr"], evidence), evidence)
