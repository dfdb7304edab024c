"""The whole model: denoiser, codec, scheduler and, in some, a text encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence, EvidenceLayout
from ldm_video.models.codec import Codec
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.text import TextEncoder


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model is meant to be sampled; the command line overrides it.

    Attributes:
        steps: number of denoiser evaluations.
        guidance: classifier-free guidance scale; 1 is none.
        scale: enlargement that the model was trained for.
        window: frames in one temporal window.
        overlap: frames that neighbouring windows share.
    """

    steps: int = 20
    guidance: float = 1.0
    scale: int = 4
    window: int = 16
    overlap: int = 4


class VideoModel(nn.Module):
    """Built parts and the one call that joins them.

    Args:
        denoiser: a 2-D diffusion UNet inflated to video.
        codec: pixels <-> scaled latents.
        scheduler: a diffusers scheduler; its config says betas and prediction type.
        layout: how evidence is laid beside the noisy latents.
        text: frozen text encoder, or None in a model that takes no prompt.
        shared_noise: share of the noise's variance that all frames have in common (PYoCo, arXiv:2305.10474).
        sampling: defaults of the sampler.
    """

    def __init__(
        self,
        denoiser: VideoUNet,
        codec: Codec,
        scheduler: SchedulerMixin,
        layout: EvidenceLayout,
        text: TextEncoder | None = None,
        shared_noise: float = 0.0,
        sampling: SamplingDefaults | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.codec = codec
        self.scheduler = scheduler
        self.layout = layout
        self.text = text
        self.shared_noise = shared_noise
        self.sampling = sampling or SamplingDefaults()
        takes, gets = int(denoiser.unet.config["in_channels"]), codec.latent_channels + layout.channels
        if takes != gets:
            raise UserError(
                f"the denoiser takes {takes} channels, latents and evidence have {codec.latent_channels} + "
                f"{layout.channels} = {gets}; correct in_channels or the layout"
            )
        if layout.factor != codec.factor:
            raise UserError(f"the layout's factor {layout.factor} is not the codec's {codec.factor}; make them equal")

    @property
    def multiple(self) -> int:
        """Both output sides must be multiples of this: the codec's factor times the denoiser's deepest level."""
        levels = len(self.denoiser.unet.config["block_out_channels"])
        return self.codec.factor * 2 ** (levels - 1)

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor | float,
        evidence: Evidence,
        text: Tensor | None = None,
    ) -> Tensor:
        """The denoiser's output for noisy scaled latents ``b t c h w`` given the evidence: ``b t c h w``.

        ``timestep`` is the scheduler's, a scalar or one for each clip (b,); ``text`` is ``b n d``.
        """
        x = torch.cat([noisy, self.layout(evidence).to(noisy)], dim=2)  # b t c h w, b t e h w -> b t (c e) h w
        return self.denoiser(x, timestep, text)
