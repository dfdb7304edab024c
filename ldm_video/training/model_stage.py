"""Base of the stages that train a denoiser: its conditioning, and which of its layers train when."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ldm_video.core.checks import number
from ldm_video.core.evidence import Evidence
from ldm_video.diffusion.noise import batch_noise
from ldm_video.diffusion.sampler import sample
from ldm_video.models.lora import adapter_parameters
from ldm_video.models.video_model import VideoModel
from ldm_video.training.batches import Draws, batch_evidence
from ldm_video.training.schedule import FULL, Pace
from ldm_video.training.stage import MakeOptimizer, Stage

LOOK_STEPS = 4
"""Steps that show what a denoiser has learned where its model takes none and the stage trains no decoder."""


@dataclass(frozen=True)
class Conditioning:
    """How the conditioning of a clip is drawn in training.

    Attributes:
        known_share, lead_share: fractions of clips with known high-res pixels and with known first frames, see
            :func:`~ldm_video.training.batches.batch_evidence`.
        text_dropout: fraction of clips whose caption is replaced by the empty one, for classifier-free guidance
            (arXiv:2207.12598). Models without text ignore captions.
        noise_level: lowest and highest level (drawn uniformly, inclusive) of the noise added to the low-res pixels, for
            a model conditioned on it (the SD x4-upscaler); None adds none.

    Raises ``UserError`` for a fraction outside [0, 1] and ``ValueError`` for a bad ``noise_level``.
    """

    known_share: float = 0.1
    text_dropout: float = 0.1
    noise_level: Sequence[int] | None = None
    lead_share: float = 0.0

    def __post_init__(self) -> None:
        for name in ("known_share", "lead_share", "text_dropout"):
            number(name, getattr(self, name), 0, 1)
        if self.noise_level is not None and not (
            len(self.noise_level) == 2 and 0 <= self.noise_level[0] <= self.noise_level[1]
        ):
            raise ValueError(f"noise_level is [lowest, highest], from 0 up, or null, not {list(self.noise_level)}")


@dataclass(frozen=True)
class Condition:
    """The conditioning of a batch of clips.

    Attributes:
        evidence: evidence for the decoder.
        seen: evidence for the denoiser: with noisy low-res pixels if there is a noise level.
        text: text embedding ``b n d``, if the model uses it.
        noise_level: ``(b,)``, if the model is conditioned on it.
        canvas: encoded canvas ``b t c h w``, if the model uses it.
    """

    evidence: Evidence
    seen: Evidence
    text: Tensor | None
    noise_level: Tensor | None
    canvas: Tensor | None


def drop_captions(captions: Iterable[str], share: float, draws: Draws) -> list[str]:
    """Replace each caption by the empty one with probability ``share``."""
    kept = draws.rand() >= share  # b
    return [caption if keep else "" for caption, keep in zip(captions, kept.tolist(), strict=True)]


class ModelStage(Stage):
    """A stage that trains the denoiser of a whole model; codec and text encoder stay frozen.

    Args:
        model: the whole model.
        conditioning: how evidence and text are drawn.
        spatial: pace of the layers inherited from the 2-D UNet; None freezes them. Temporal layers and the first
            convolution, which may have new evidence channels, train from the first step at the full rate. If the
            denoiser has adapters, only these train, from the first step, and ``spatial`` is ignored.
        optimizer, warmup, seed: see :class:`~ldm_video.training.stage.Stage`.

    Raises ``ValueError`` if ``conditioning.noise_level`` does not fit the model.
    """

    def __init__(
        self,
        model: VideoModel,
        optimizer: MakeOptimizer,
        conditioning: Conditioning,
        spatial: Pace | None,
        warmup: int,
        seed: int,
    ) -> None:
        super().__init__(optimizer, warmup, seed)
        model.requires_grad_(False)
        adapters = adapter_parameters(model.denoiser)
        for parameter in adapters or model.denoiser.parameters():
            parameter.requires_grad_(True)
        if model.text is not None:
            model.text.eval()  # no dropout in the prompt
        _check_noise_level(model, conditioning.noise_level)
        self.model = model
        self.conditioning = conditioning
        self.adapted = bool(adapters)
        self.spatial = FULL if adapters else spatial
        if self.spatial is None:
            for parameter in self._spatial_parameters():
                parameter.requires_grad_(False)

    def paces(self) -> list[tuple[str, Iterable[nn.Parameter], Pace]]:
        return [] if self.spatial is None else [("spatial", self._spatial_parameters(), self.spatial)]

    def _spatial_parameters(self) -> list[nn.Parameter]:
        entrance = {id(parameter) for parameter in self.model.denoiser.unet.conv_in.parameters()}
        return [p for p in self.model.denoiser.spatial_parameters() if id(p) not in entrance]

    def condition(self, batch: Mapping[str, Any], draws: Draws) -> Condition:
        """Draw the conditioning of a batch as in training."""
        return self._condition(batch, draws, self.conditioning)

    def plain_condition(self, batch: Mapping[str, Any], draws: Draws) -> Condition:
        """Return the conditioning used at inference: no known pixels, no caption dropout, the default noise level."""
        level = self.model.sampling.noise_level
        return self._condition(batch, draws, Conditioning(0.0, 0.0, None if level is None else (level, level)))

    def _condition(self, batch: Mapping[str, Any], draws: Draws, conditioning: Conditioning) -> Condition:
        shares = conditioning.known_share, conditioning.lead_share
        evidence = batch_evidence(batch, shares[0], draws, shares[1], self.model.codec.colour_shift)
        text = self._text(batch, conditioning.text_dropout, draws)
        canvas = self.model.encode_canvas(evidence)
        if conditioning.noise_level is None:
            return Condition(evidence, evidence, text, None, canvas)
        low, high = conditioning.noise_level
        level = draws.each(lambda generator: torch.randint(low, high + 1, (1,), generator=generator))  # b
        noise = self.noise(batch["hr"], draws, channels=3)
        level = level.to(noise.device)
        return Condition(evidence, self.model.noise_lowres(evidence, level, noise), text, level, canvas)

    def _text(self, batch: Mapping[str, Any], dropout: float, draws: Draws) -> Tensor | None:
        if self.model.text is None:
            return None
        captions = batch.get("caption", [""] * len(batch["hr"]))
        return self.model.text(drop_captions(captions, dropout, draws))  # b n d

    def predict(self, noisy: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
        """Return the denoiser's output for noisy latents ``b t c h w``, of the same shape."""
        timestep = timestep.to(noisy.device)
        return self.model.predict(
            noisy, timestep, condition.seen, condition.text, noise_level=condition.noise_level, canvas=condition.canvas
        )

    def noise(self, pixels: Tensor, draws: Draws, channels: int | None = None) -> Tensor:
        """Draw noise ``b t c h w`` on the latent grid of pixels ``b t 3 H W``; default: the latents' channels."""
        _, t, _, height, width = pixels.shape
        codec = self.model.codec
        shape = (1, t, channels or codec.latent_channels, height // codec.factor, width // codec.factor)
        return draws.each(lambda generator: batch_noise(shape, generator, self.model.shared_noise)).to(pixels)

    @torch.no_grad()
    def restore(self, batch: Mapping[str, Any]) -> Tensor:
        """Sample with the model's default settings, without guidance: ``b t 3 H W``.

        If those run no step and the decoder is frozen, sample in ``LOOK_STEPS`` steps from pure noise: the
        decoder alone would show the same picture throughout the run.
        """
        draws = self.draws(batch, 0, "restore")
        condition = self.plain_condition(batch, draws)
        noise, sampling, codec = self.noise(batch["hr"], draws), self.model.sampling, self.model.codec
        if sampling.steps == 0 and not any(parameter.requires_grad for parameter in codec.decoder_parameters()):
            sampling = replace(sampling, steps=LOOK_STEPS, strength=1.0)
        if sampling.steps == 0:
            return codec.decode(torch.zeros_like(noise), condition.evidence)
        latents = sample(
            lambda x, timestep: self.predict(x, timestep, condition),
            self.model.scheduler,
            noise,
            sampling.steps,
            start=codec.encode(condition.evidence.guess, condition.evidence) if sampling.strength < 1 else None,
            strength=sampling.strength,
        )
        return codec.decode(latents, condition.evidence)


def _check_noise_level(model: VideoModel, levels: Sequence[int] | None) -> None:
    if levels is None:
        return
    if model.lowres_scheduler is None:
        raise ValueError("this model is not told of a noise level; set noise_level=null")
    limit = model.sampling.noise_limit
    if limit is not None and levels[1] > limit:
        raise ValueError(f"noise_level goes up to {levels[1]}, the model was trained up to {limit}; lower it")
