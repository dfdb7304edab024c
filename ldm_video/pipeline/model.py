"""What the pipeline asks of a model; it is handed a built one and knows no class of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from diffusers import SchedulerMixin
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence


class PixelCodec(Protocol):
    """The side of a codec that the pipeline uses."""

    factor: int
    latent_channels: int
    finishes: bool
    colour_shift: float

    @property
    def pixels_at_once(self) -> int | None:
        """About how many output pixels are decoded at a time; None: all that :meth:`decode` is given."""

    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Pixels ``b t 3 H W`` in [-1, 1], evidence of their size -> scaled latents ``b t c H/f W/f``."""

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """Scaled latents ``b t c h w`` -> pixels ``b t 3 (h f) (w f)``."""

    def finish(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Decoded pixels ``b t 3 H W`` of all frames of a segment -> what is made of them together; asked for where
        ``finishes``."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; the first tells the type, which need not be the denoiser's."""


class RestorationModel(Protocol):
    """A denoiser with its codec and scheduler, such as :class:`ldm_video.models.video_model.VideoModel`."""

    scheduler: SchedulerMixin
    shared_noise: float

    @property
    def codec(self) -> PixelCodec:
        """Pixels <-> latents."""

    @property
    def multiple(self) -> int:
        """Both output sides must be multiples of this."""

    def noise_lowres(self, evidence: Evidence, level: Tensor, noise: Tensor) -> Evidence:
        """The evidence with low-res pixels on the latent grid, made noisy; asked for where a level is set."""

    def encode_canvas(self, evidence: Evidence) -> Tensor | None:
        """What :meth:`predict` takes as ``canvas``, ``b t c h w``; None in a model that does not read it."""

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor | float,
        evidence: Evidence,
        text: Tensor | None = None,
        noise_level: Tensor | None = None,
        canvas: Tensor | None = None,
    ) -> Tensor:
        """The denoiser's output for noisy scaled latents ``b t c h w``; text ``b n d``, or ``b t n d`` by frames."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """All parameters; the first tells device and type."""
