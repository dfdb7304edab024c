"""What the pipeline asks of a model; it is handed a built one and knows no class of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from diffusers import SchedulerMixin
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence


class Decoder(Protocol):
    """The side of a codec that the pipeline uses."""

    factor: int
    latent_channels: int

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """Scaled latents ``b t c h w`` -> pixels ``b t 3 (h f) (w f)``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; the first tells the type, which need not be the denoiser's."""


class RestorationModel(Protocol):
    """A denoiser with its codec and scheduler, such as :class:`ldm_video.models.video_model.VideoModel`."""

    scheduler: SchedulerMixin
    shared_noise: float

    @property
    def codec(self) -> Decoder:
        """Latents -> pixels."""

    @property
    def multiple(self) -> int:
        """Both output sides must be multiples of this."""

    def predict(self, noisy: Tensor, timestep: Tensor | float, evidence: Evidence, text: Tensor | None) -> Tensor:
        """The denoiser's output for noisy scaled latents ``b t c h w``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; the first tells device and type."""
