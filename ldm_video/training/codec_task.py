"""Train the codec: reconstruct the high-res clip from its latents and the evidence."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ldm_video.core.tensors import unfold_time
from ldm_video.models.codec import VideoCodec
from ldm_video.training.batches import batch_evidence
from ldm_video.training.losses import PixelLoss, psnr
from ldm_video.training.order import joint
from ldm_video.training.stage import MakeOptimizer, Stage


class CodecTask(Stage):
    """Batch -> latents + evidence -> pixels -> loss.

    Args:
        codec: the codec to train.
        pixel_loss: L1, perceptual and motion terms.
        kl_weight: weight of the latents' KL divergence from a unit Gaussian, per latent number (LDM, section 3.1).
        latent_dropout: share of clips whose latents are drawn from the prior instead: the decoder learns to lean on
            the evidence when the latents say nothing.
        known_share: share of clips with known high-res pixels (see :func:`batch_evidence`).
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.
    """

    def __init__(
        self,
        codec: VideoCodec,
        pixel_loss: PixelLoss,
        optimizer: MakeOptimizer,
        kl_weight: float = 1e-5,
        latent_dropout: float = 0.1,
        known_share: float = 0.1,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        self.codec = codec
        self.pixel_loss = pixel_loss
        self.kl_weight = kl_weight
        self.latent_dropout = latent_dropout
        self.known_share = known_share

    def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
        draws = self.draws(batch, index)
        hr = batch["hr"]
        evidence = batch_evidence(batch, self.known_share, draws)
        posterior = self.codec.posterior(hr)
        mean, std = (unfold_time(x, hr.shape[1]) for x in (posterior.mean, posterior.std))  # b t c h w
        raw = mean + std * draws.randn(*mean.shape[1:]).to(hr)
        self.codec.track_scale(joint(raw))
        scaled = self.codec.scale(raw)
        drop = (draws.rand(1, 1, 1, 1) < self.latent_dropout).to(hr)
        scaled = torch.lerp(scaled, draws.randn(*scaled.shape[1:]).to(hr), drop)
        output = self.codec.decode(scaled, evidence)
        terms = self.pixel_loss(output, hr, draws.step)
        terms["kl"] = self.kl_weight * posterior.kl().mean() / raw[0, 0].numel()
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({f"train/{name}": value for name, value in terms.items()})
        self.log("train/loss", loss, prog_bar=True)
        return self.finite(loss, batch)

    def validation_step(self, batch: dict[str, Tensor], index: int) -> None:
        output = self.restore(batch).clamp(-1, 1)
        self.log("val/psnr", psnr(output, batch["hr"]), prog_bar=True, sync_dist=True)

    @torch.no_grad()
    def restore(self, batch: Mapping[str, Tensor]) -> Tensor:
        """The clips again, through their own latents and the evidence."""
        evidence = batch_evidence(batch, 0.0, self.draws(batch, 0, "restore"))
        return self.codec.decode(self.codec.encode(batch["hr"]), evidence)
