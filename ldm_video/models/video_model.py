"""The whole model: denoiser, codec, scheduler and an optional text encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from diffusers import SchedulerMixin
from torch import Tensor, nn

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import Evidence, EvidenceLayout, resize
from ldm_video.core.tensors import fold_time, unfold_time
from ldm_video.models.codec import Codec
from ldm_video.models.inflate import VideoUNet
from ldm_video.models.text import TextEncoder


@dataclass(frozen=True)
class SamplingDefaults:
    """How a model is meant to be sampled; the command line overrides it.

    Set by a training stage that trains the model for another use, or when saving a model trained on other clips.

    Attributes:
        steps: number of denoiser evaluations; 0 leaves everything to a decoder that sees the evidence.
        guidance: classifier-free guidance scale; 1 disables it.
        scale: enlargement that the model was trained for.
        window: frames per temporal window.
        overlap: frames that neighbouring windows share.
        strength: fraction of the steps to run, starting from the evidence's guess with noise added; 1 starts from pure
            noise.
        noise_level: level of the noise added to the low-res pixels, in a model conditioned on it; None in others.
        noise_limit: the highest noise level that it was trained with.
        average: neighbours on each side with which a low-res frame is first averaged along the motion, see
            :func:`ldm_video.motion.average.average_along_motion`; 0 disables it.
        steady: neighbours on each side with which the output is blended along the motion; 0 disables it.
        fidelity: fraction, 0 to 1, of the difference between the input and the downscaled output to add back to the
            output.
    """

    steps: int = 20
    guidance: float = 1.0
    scale: float = 4
    window: int = 16
    overlap: int = 4
    strength: float = 1.0
    noise_level: int | None = None
    noise_limit: int | None = None
    average: int = 0
    steady: int = 0
    fidelity: float = 0.0


class VideoModel(nn.Module):
    """The parts of a model, and the call that joins them.

    The denoiser's input channels after the noisy latents are, in this order:

    1. with ``sees_canvas``: the hole (1 channel) and the canvas in scaled latents, as in Stable Diffusion inpainting;
    2. the evidence as laid out by ``layout``; with kind ``pixels`` it starts with the RGB of the SD x4-upscaler.

    So the channels that a published checkpoint was trained with come first, and new ones after them.

    Args:
        denoiser: a 2-D diffusion UNet inflated to video.
        codec: pixels <-> scaled latents.
        scheduler: a diffusers scheduler; its config determines betas and prediction type.
        layout: how the evidence is laid out beside the noisy latents.
        text: frozen text encoder, or None in a model that takes no prompt.
        shared_noise: fraction of the noise variance that all frames share (PYoCo, arXiv:2305.10474).
        sampling: defaults of the sampler.
        lowres_scheduler: forward process of the low-res pixels' noise, for a denoiser with a noise-level label.
        sees_canvas: whether the denoiser reads the hole and the canvas in latents.

    Raises ``UserError`` if the parts do not fit together.
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
        lowres_scheduler: SchedulerMixin | None = None,
        sees_canvas: bool = False,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.codec = codec
        self.scheduler = scheduler
        self.layout = layout
        self.text = text
        self.shared_noise = shared_noise
        self.sampling = sampling or SamplingDefaults()
        self.lowres_scheduler = lowres_scheduler
        self.sees_canvas = sees_canvas
        takes, latents = int(denoiser.unet.config["in_channels"]), codec.latent_channels
        gets = latents + sees_canvas * (1 + latents) + layout.channels
        if takes != gets:
            raise UserError(
                f"the denoiser takes {takes} channels, latents and evidence have {latents} + {gets - latents} = {gets};"
                " correct in_channels or the layout"
            )
        if (lowres_scheduler is None) != (denoiser.unet.config["num_class_embeds"] is None):
            raise UserError("a denoiser with a noise-level label (num_class_embeds) needs a lowres_scheduler, no other")
        if layout.factor != codec.factor:
            raise UserError(f"the layout's factor {layout.factor} is not the codec's {codec.factor}; make them equal")

    @property
    def multiple(self) -> int:
        """Both output sides must be multiples of this: the codec's factor times the denoiser's deepest level."""
        levels = len(self.denoiser.unet.config["block_out_channels"])
        return self.codec.factor * 2 ** (levels - 1)

    def noise_lowres(self, evidence: Evidence, level: Tensor, noise: Tensor) -> Evidence:
        """Return evidence for a denoiser with a noise-level label: low-res pixels on the latent grid, noise added.

        Args:
            evidence: of size H x W.
            level: ``(b,)`` integers, the ``noise_level`` of :meth:`predict`.
            noise: unit variance, ``b t 3 H/f W/f``; the same for all steps.

        Raises ``UserError`` if the model has no noise level.
        """
        if self.lowres_scheduler is None:
            raise UserError("this model does not take a noise level; leave it out")
        grid = (evidence.size[0] // self.codec.factor, evidence.size[1] // self.codec.factor)
        noise = noise.float()  # in bfloat16 the lowest levels would be rounded away
        lowres = resize(evidence.lowres, grid).float()  # b t 3 h w
        return replace(evidence, lowres=self.lowres_scheduler.add_noise(lowres, noise, level.to(noise.device)))

    @torch.no_grad()
    def encode_canvas(self, evidence: Evidence) -> Tensor | None:
        """Encode the canvas to scaled latents ``b t c H/f W/f``; None if the denoiser does not read it."""
        if not self.sees_canvas:
            return None
        return self.codec.encode(evidence.canvas.to(next(self.codec.parameters()).dtype), evidence)

    def predict(
        self,
        noisy: Tensor,
        timestep: Tensor | float,
        evidence: Evidence,
        text: Tensor | None = None,
        noise_level: Tensor | None = None,
        canvas: Tensor | None = None,
    ) -> Tensor:
        """Return the denoiser's output for noisy scaled latents ``b t c h w`` given the evidence: ``b t c h w``.

        Args:
            noisy: noisy scaled latents.
            timestep: the scheduler's, a scalar or one per clip ``(b,)``.
            evidence: of size ``(h f) x (w f)``.
            text: ``b n d`` for the clip or ``b t n d`` for each frame.
            noise_level: ``(b,)``, the level that :meth:`noise_lowres` applied to the evidence; None if it was not
                applied.
            canvas: result of :meth:`encode_canvas` for this evidence, to avoid encoding it at every step.
        """
        parts = [noisy]
        if self.sees_canvas:
            canvas = self.encode_canvas(evidence) if canvas is None else canvas
            assert canvas is not None
            # A cell that the hole touches counts as hole: diffusers samples a pixel per cell and misses thin scratches.
            hole = F.max_pool2d(fold_time(evidence.hole), self.codec.factor)  # (b t) 1 h w
            parts += [unfold_time(hole, noisy.shape[1]), canvas]
        parts.append(self.layout(evidence))
        x = torch.cat([part.to(noisy) for part in parts], dim=2)  # b t c h w, ... -> b t (c + ...) h w
        return self.denoiser(x, timestep, text, self._label(noise_level, noisy))

    def _label(self, noise_level: Tensor | None, noisy: Tensor) -> Tensor | None:
        if self.lowres_scheduler is None:
            if noise_level is not None:
                raise UserError("this model does not take a noise level; leave it out")
            return None
        level = torch.zeros(1) if noise_level is None else noise_level
        return level.to(noisy.device, torch.long).expand(noisy.shape[0])
