"""Fine-tune for few-step sampling: one prediction of the clean latents, with a loss in pixels through the decoder.

DOVE (arXiv:2505.16239) trains a single step at a fixed timestep, first in latents, then in pixels. Here the timestep is
drawn from the few that the sampler visits. At all but the first, the noisy latents are made from the model's own
prediction (as in the sampler), not from the ground truth.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm_video.core.checks import number
from ldm_video.diffusion.process import Process
from ldm_video.diffusion.sampler import from_the_last, sampling_timesteps
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import Draws
from ldm_video.training.losses import PixelLoss, psnr
from ldm_video.training.model_stage import Condition, Conditioning, ModelStage
from ldm_video.training.schedule import FULL, Pace
from ldm_video.training.stage import MakeOptimizer


class FewStepTask(ModelStage):
    """Batch -> one prediction -> pixels -> loss. Trains the denoiser and the decoder together, or only the adapters of
    a denoiser that has them.

    The model's sampling settings are changed, and saved, to match training. A model with ``steps > 0`` takes
    ``len(step_shares)`` steps, from pure noise and without guidance. Sampling starts at the last timestep, see
    :func:`~ldm_video.diffusion.sampler.from_the_last`; except with adapters, which are saved without a scheduler.

    Args:
        pixel_loss: L1, perceptual, motion and, optionally, adversarial terms.
        step_shares: relative frequency of the first, second, ... of ``len(step_shares)`` sampling steps as the start
            of the prediction; not negative, not all 0.
        decoder_share: fraction of steps that train the decoder alone, with zero latents, like a sampler with
            ``steps=0``. For codecs whose decoder sees the evidence.
        latent_weight: weight of the clean latents' mean squared error; 0 leaves it out (and skips the encoder).
        pixel_from_step: step from which the pixel loss is used and the decoder learns; before, only the latent loss.
        model, optimizer, conditioning, spatial, warmup, seed: see
            :class:`~ldm_video.training.model_stage.ModelStage`.

    Raises ``ValueError`` for settings that contradict each other or the model.
    """

    def __init__(
        self,
        model: VideoModel,
        pixel_loss: PixelLoss,
        optimizer: MakeOptimizer,
        step_shares: Sequence[float] = (0.7, 0.1, 0.1, 0.1),
        latent_weight: float = 0.05,
        pixel_from_step: int = 0,
        decoder_share: float = 0.0,
        conditioning: Conditioning = Conditioning(),  # noqa: B008 (frozen)
        spatial: Pace | None = FULL,
        warmup: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(model, optimizer, conditioning, spatial, warmup, seed)
        if pixel_from_step > 0 and latent_weight <= 0:
            raise ValueError("until pixel_from_step only latents are judged: latent_weight must be positive")
        if number("decoder_share", decoder_share, 0, 1) and not model.codec.sees_evidence:
            raise ValueError("the decoder of this model does not see the evidence; set decoder_share=0")
        for parameter in model.codec.decoder_parameters():
            parameter.requires_grad_(not self.adapted)
        if not self.adapted:  # adapters are saved alone and used with their base model's scheduler
            model.scheduler = from_the_last(model.scheduler)
        if model.sampling.steps > 0:  # a model without sampling steps keeps steps=0, whatever its denoiser learns
            model.sampling = replace(model.sampling, steps=len(step_shares), guidance=1.0, strength=1.0)
        self.process = Process.from_scheduler(model.scheduler)
        self.timesteps = sampling_timesteps(model.scheduler, len(step_shares))  # noisiest first
        self.pixel_loss = pixel_loss
        self.step_shares = torch.tensor(step_shares, dtype=torch.float32)  # accepts integers, too
        if not (bool((self.step_shares >= 0).all()) and 0 < float(self.step_shares.sum()) < float("inf")):
            raise ValueError(f"step_shares are numbers from 0 up and not all 0, not {list(step_shares)}")
        self.latent_weight = latent_weight
        self.pixel_from_step = pixel_from_step
        self.decoder_share = decoder_share

    def at_full_cost(self) -> None:
        self.decoder_share, self.pixel_from_step = 0.0, 0

    def paces(self) -> list[tuple[str, Iterable[nn.Parameter], Pace]]:
        return [*super().paces(), ("pixels", self._pixel_parameters(), Pace(self.pixel_from_step))]

    def _pixel_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that only the pixel loss trains: decoder and adversary."""
        own = (p for p in self.pixel_loss.parameters() if p.requires_grad)
        return [*self.model.codec.decoder_parameters(), *own]

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        draws = self.draws(batch, index)
        condition = self.condition(batch, draws)
        step = int(torch.multinomial(self.step_shares, 1, generator=draws.step))
        noise = self.noise(batch["hr"], draws)
        judged = self.global_step >= self.pixel_from_step
        alone = judged and self._draws_decoder_alone(draws)
        clean = torch.zeros_like(noise) if alone else self._jump(noise, step, condition)
        terms = {}
        if judged:
            output = self.model.codec.decode(clean, condition.evidence)
            terms = self.pixel_loss(output, batch["hr"], draws.step, condition.evidence.guess)
        if self.latent_weight and not alone:
            with torch.no_grad():
                latents = self.model.codec.encode(batch["hr"], condition.evidence)  # b t c h w
            terms["latent"] = self.latent_weight * F.mse_loss(clean, latents)
        idle = [] if judged else self._pixel_parameters()
        if alone:
            idle += [p for p in self.model.denoiser.parameters() if p.requires_grad]
        return self.total(terms, batch, idle)

    def _draws_decoder_alone(self, draws: Draws) -> bool:
        """Draw whether this step trains the decoder alone, on zero latents. At a share of 0, nothing is drawn."""
        return self.decoder_share > 0 and float(torch.rand((), generator=draws.step)) < self.decoder_share

    def _jump(self, noisy: Tensor, step: int, condition: Condition) -> Tensor:
        """Predict clean latents at sampling step ``step``: from noise or, after the first step, from the model's own
        first prediction, noised again."""
        if step > 0:
            with torch.no_grad():
                own = self._predict_clean(noisy, self.timesteps[0], condition)
                noisy = self.process.moved(noisy, own, self.timesteps[0], self.timesteps[step])
        return self._predict_clean(noisy, self.timesteps[step], condition)

    def _predict_clean(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        return self.process.to_x0(noisy, self.predict(noisy, timestep, condition), timestep)

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        draws = self.draws(batch, index, "val")
        condition = self.plain_condition(batch, draws)
        noise = self.noise(batch["hr"], draws)
        used = self.model.sampling.steps > 0  # without sampling steps, the denoiser may be untrained
        clean = self._jump(noise, 0, condition) if used else torch.zeros_like(noise)
        output = self.model.codec.decode(clean, condition.evidence).clamp(-1, 1)
        self.log("val/psnr", psnr(output, batch["hr"]), prog_bar=True, sync_dist=True)
        terms = self.pixel_loss(output, batch["hr"], draws.step, condition.evidence.guess)
        self.log_dict({f"val/{name}": value for name, value in terms.items()}, sync_dist=True)
