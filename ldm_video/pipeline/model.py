"""The interface that the pipeline requires of a model; it receives a built one and knows no concrete class."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from diffusers import SchedulerMixin
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence


class PixelCodec(Protocol):
    """The part of a codec that the pipeline uses.

    Attributes:
        factor: pixels per latent, along each side.
        latent_channels: channels of the latents.
        finishes: whether :meth:`finish` changes anything.
        colour_shift: pixels by which the low-res colour is moved to the right before the model sees it.
    """

    factor: int
    latent_channels: int
    finishes: bool
    colour_shift: float

    @property
    def pixels_at_once(self) -> int | None:
        """About how many output pixels are decoded at a time; None: all that :meth:`decode` is given."""

    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Encode pixels ``b t 3 H W`` in [-1, 1], with evidence of their size, to scaled latents ``b t c H/f W/f``."""

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """Decode scaled latents ``b t c h w`` to pixels ``b t 3 (h f) (w f)``."""

    def finish(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Post-process decoded pixels ``b t 3 H W``, all frames of a segment together.

        Returns them unchanged unless ``finishes``.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters; the first one gives the dtype, which may differ from the denoiser's."""


class RestorationModel(Protocol):
    """A denoiser with its codec and scheduler, such as :class:`ldm_video.models.video_model.VideoModel`."""

    scheduler: SchedulerMixin
    shared_noise: float

    @property
    def codec(self) -> PixelCodec:
        """The codec between pixels and latents."""

    @property
    def multiple(self) -> int:
        """Both output sides must be multiples of this."""

    def noise_lowres(self, evidence: Evidence, level: Tensor, noise: Tensor) -> Evidence:
        """Return the evidence with noisy low-res pixels on the latent grid; called if a level is set."""

    def encode_canvas(self, evidence: Evidence) -> Tensor | None:
        """Return the ``canvas`` for :meth:`predict`, ``b t c h w``; None for a model that does not read it."""

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor | float,
        evidence: Evidence,
        text: Tensor | None = None,
        noise_level: Tensor | None = None,
        canvas: Tensor | None = None,
    ) -> Tensor:
        """Return the denoiser's output for noisy scaled latents ``b t c h w``.

        ``text`` is ``b n d``, or ``b t n d`` per frame.
        """

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield all parameters; the first one gives device and dtype."""
