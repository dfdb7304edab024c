"""Codecs: high-res pixels -> latents -> high-res pixels, with access to the evidence on both sides.

A plain autoencoder limits fidelity (KL-f8: 24.2 dB, KL-f4: 27.5 dB on ImageNet, latent-diffusion README), since its
decoder must regenerate what the low-res frames already show. The latents of `BasisCodec` encode what the evidence
lacks, in a fixed basis: a denoiser can be trained without training an encoder first, and the decoder sees the evidence.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_video.core.evidence import Evidence
from ldm_video.core.tensors import fold_time, frames_at_once, unfold_time
from ldm_video.models.patch_basis import patch_basis
from ldm_video.models.temporal import TemporalBlock, TemporalConfig

_EVIDENCE_CHANNELS = 3 + 1 + 1 + 3  # input channels of the decoder: guess, hole, known, draft minus guess
_THROUGH_TEMPORAL = 2  # modules of a temporal stage up to and including the one that mixes frames


class Codec(nn.Module, ABC):
    """The interface of an autoencoder that the sampler and the trainer use.

    Attributes:
        factor: output pixels per side of a latent cell.
        latent_channels: channels of a latent.
        sees_evidence: whether decoding uses the evidence, so that zero latents still give a picture.
        finishes: whether :meth:`finish` changes anything.
        config: plain data from which it can be rebuilt.
        colour_shift: low-res pixels by which colour was shifted to the right in its low-res training frames; other
            frames are shifted to match (:func:`~ldm_video.video_io.colour_shift.shift_colour`).
    """

    factor: int
    latent_channels: int
    sees_evidence: bool
    config: dict
    finishes = False
    colour_shift: float = 0.0

    @property
    def pixels_at_once(self) -> int | None:
        """About how many output pixels are decoded at a time; None: all that :meth:`decode` is given."""
        return None

    @abstractmethod
    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Pixels ``b t 3 H W`` in [-1, 1] and evidence of the same size -> scaled latents ``b t c H/f W/f``."""

    @abstractmethod
    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """Scaled latents ``b t c h w`` -> pixels ``b t 3 (h f) (w f)``, roughly in [-1, 1], not clipped."""

    def finish(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Post-process the decoded pixels ``b t 3 H W`` of all frames of a segment together; same shape."""
        return pixels

    @abstractmethod
    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters to train with losses on decoded pixels."""


class ImageCodec(Codec):
    """A diffusers ``AutoencoderKL``, applied per frame; the evidence is ignored.

    Scaling factor and spatial factor are read from the autoencoder's config. Frames are independent and processed a few
    at a time, about ``pixels_at_once`` pixels, so memory for activations does not grow with the clip.
    """

    sees_evidence = False

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.config = dict(autoencoder.config)
        self.factor = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        self.latent_channels = int(autoencoder.config["latent_channels"])
        self.scaling = float(autoencoder.config["scaling_factor"])
        self.shift = float(autoencoder.config.get("shift_factor") or 0.0)

    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """``b t 3 H W -> b t c H/f W/f``, scaled: the mean of the posterior."""
        batches = fold_time(pixels).split(self._frames_at_once(pixels.shape[-2:].numel()))  # (b t) 3 H W
        with _without_half_autocast(pixels):
            raw = torch.cat([self.autoencoder.encode(self._cast(x)).latent_dist.mode() for x in batches])  # (b t) c h w
        return unfold_time((raw - self.shift) * self.scaling, pixels.shape[1])

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """``b t c h w -> b t 3 (h f) (w f)``."""
        raw = fold_time(latents) / self.scaling + self.shift  # (b t) c h w
        batches = raw.split(self._frames_at_once(latents.shape[-2:].numel() * self.factor**2))
        with _without_half_autocast(latents):
            pixels = torch.cat([self.autoencoder.decode(self._cast(x)).sample for x in batches])  # (b t) 3 (h f) (w f)
        return unfold_time(pixels, latents.shape[1])

    @property
    def pixels_at_once(self) -> int:
        """Large batches fill a GPU; on a CPU they exceed its cache (four frames of 256x256 take a fifth longer)."""
        return 2**16 if next(self.autoencoder.parameters()).device.type == "cpu" else 2**20

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(next(self.autoencoder.parameters()).dtype)

    def _frames_at_once(self, pixels: int) -> int:
        return max(1, self.pixels_at_once // pixels)

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The decoder and the 1x1 convolution before it."""
        yield from self.autoencoder.decoder.parameters()
        if self.autoencoder.post_quant_conv is not None:
            yield from self.autoencoder.post_quant_conv.parameters()


@contextmanager
def _without_half_autocast(x: Tensor) -> Iterator[None]:
    """Disable autocast to float16, in which Stable Diffusion's autoencoder overflows."""
    kind = x.device.type
    half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) == torch.float16
    with torch.autocast(kind, enabled=False) if half else nullcontext():
        yield


class BasisCodec(Codec):
    """Encodes the residual of each 8x8 patch to the evidence's guess in a cosine basis; its decoder sees the evidence.

    ``pixels = guess + basis^T latents`` is the *draft*. It is linear, so what the denoiser changes in the latents
    affects the pixels from the first training step on. The decoder corrects the draft: components outside the basis,
    patch borders, information from neighbouring frames.

    Args:
        latent_channels: components of the basis, see :func:`~ldm_video.models.patch_basis.patch_basis`.
        decoder: ``(latents b t c h w, evidence, draft b t 3 8h 8w) -> pixels b t 3 8h 8w``.
        config: plain data from which the codec can be rebuilt.
    """

    factor = 8
    sees_evidence = True
    basis: Tensor
    latent_std: Tensor

    def __init__(self, latent_channels: int, decoder: nn.Module, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = config
        self.latent_channels = latent_channels
        self.decoder = decoder
        self.register_buffer("basis", patch_basis(latent_channels, self.factor), persistent=False)
        # Latents are scaled to unit variance per channel, as the diffusion process assumes; their mean is near zero.
        self.register_buffer("latent_std", torch.ones(latent_channels))

    def project(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """Project pixels ``b t 3 H W`` minus the evidence's guess to raw latents ``b t c H/8 W/8``."""
        residual = fold_time(pixels - evidence.guess.to(pixels))  # (b t) 3 H W
        return unfold_time(F.conv2d(residual, self.basis.to(residual), stride=self.factor), pixels.shape[1])

    def encode(self, pixels: Tensor, evidence: Evidence) -> Tensor:
        """``b t 3 H W -> b t c H/8 W/8``, scaled."""
        raw = self.project(pixels, evidence)
        return raw / self.latent_std.to(raw).view(-1, 1, 1)

    def draft(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """``b t c h w`` (scaled) -> pixels ``b t 3 (8 h) (8 w)``: the guess plus the residual in the latents."""
        raw = fold_time(latents * self.latent_std.to(latents).view(-1, 1, 1))  # (b t) c h w
        residual = F.conv_transpose2d(raw, self.basis.to(raw), stride=self.factor)  # (b t) 3 8h 8w
        return evidence.guess + unfold_time(residual, latents.shape[1]).to(evidence.guess)

    def decode(self, latents: Tensor, evidence: Evidence) -> Tensor:
        """``b t c h w`` (scaled) and evidence of size ``(8 h) x (8 w)`` -> ``b t 3 (8 h) (8 w)``."""
        return self.decoder(latents, evidence, self.draft(latents, evidence))

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The evidence-aware decoder, the only trainable part of a codec."""
        return self.decoder.parameters()

    @torch.no_grad()
    def track_scale(self, raw: Tensor, momentum: float = 0.02) -> None:
        """Update the running standard deviation of the latents with a batch of raw latents ``b t c h w``."""
        deviation = raw.square().mean(dim=(0, 1, 3, 4)).sqrt()  # around zero, the mean for pictures without a hole
        self.latent_std.lerp_(deviation.clamp(min=1e-3).to(self.latent_std), momentum)


class VideoCodec(BasisCodec):
    """A small decoder trained from scratch; :class:`~ldm_video.models.paired_codec.PairedCodec` adds a restorer to it.

    Args:
        latent_channels: components of the basis.
        decoder_channels: widths of the decoder on the f8, f4 and f2 grids and at full size.
        decoder_blocks: residual blocks on the f8, f4 and f2 grids.
        colour_shift: see :class:`Codec`.
    """

    def __init__(
        self,
        latent_channels: int = 32,
        decoder_channels: tuple[int, int, int, int] = (128, 64, 32, 12),
        decoder_blocks: tuple[int, int, int] = (2, 4, 2),
        colour_shift: float = 0.0,
    ) -> None:
        decoder = EvidenceDecoder(latent_channels, decoder_channels, decoder_blocks)
        config = {
            "latent_channels": latent_channels,
            "decoder_channels": list(decoder_channels),
            "decoder_blocks": list(decoder_blocks),
            "colour_shift": colour_shift,
        }
        super().__init__(latent_channels, decoder, config)
        self.colour_shift = colour_shift


class EvidenceDecoder(nn.Module):
    """Corrects the draft of latents on the f8 grid, upsampling through the f4 and f2 grids.

    No normalisation outside the temporal blocks, which normalise per pixel: the output does not depend on far-away
    pixels, so that tiles agree where they overlap, and colours do not shift. Evidence and draft enter at the f4 and f2
    grids, space to depth.
    """

    def __init__(self, latent_channels: int, channels: tuple[int, int, int, int], blocks: tuple[int, int, int]) -> None:
        super().__init__()
        wide, middle, narrow, fine = channels
        self.enter8 = nn.Conv2d(latent_channels, wide, 3, padding=1)
        self.body8 = nn.ModuleList(_stage(wide, blocks[0]))
        self.up4 = nn.Conv2d(wide, middle * 4, 3, padding=1)
        self.evidence4 = nn.Conv2d(_EVIDENCE_CHANNELS * 4**2, middle, 3, padding=1)
        self.body4 = nn.ModuleList(_stage(middle, blocks[1]))
        self.up2 = nn.Conv2d(middle, narrow * 4, 3, padding=1)
        self.evidence2 = nn.Conv2d(_EVIDENCE_CHANNELS * 2**2, narrow, 3, padding=1)
        self.body2 = nn.ModuleList(_stage(narrow, blocks[2], temporal=False))
        self.up1 = nn.Conv2d(narrow, fine * 4, 3, padding=1)
        self.exit = nn.Conv2d(fine, 3, 3, padding=1)
        for conv in (self.up4, self.up2, self.up1):
            _repeat_over_shuffle(conv)
        _start_at_zero(self.exit)

    def forward(self, latents: Tensor, evidence: Evidence, draft: Tensor) -> Tensor:
        """``b t c h w``, evidence and draft ``b t 3 H W`` with ``H = 8 h``, ``W = 8 w`` -> ``b t 3 H W``."""
        frames = latents.shape[1]
        seen = [evidence.guess, evidence.hole, evidence.known, draft - evidence.guess]
        cues = torch.cat(seen, dim=2).to(latents)  # b t 8 H W
        x = self.enter8(fold_time(latents))  # (b t) wide h w
        x = _run(self.body8, x, frames)
        x = F.pixel_shuffle(self.up4(x), 2)  # (b t) middle 2h 2w
        x = x + self.evidence4(F.pixel_unshuffle(fold_time(cues), 4))
        x = _run(self.body4[:_THROUGH_TEMPORAL], x, frames)
        # From here on frames are independent: process a few at a time, which fit into a CPU's cache.
        at_once = frames_at_once(cues)
        parts = zip(x.split(at_once), fold_time(cues).split(at_once), strict=True)
        correction = torch.cat([self._finish(*part) for part in parts])  # (b t) 3 8h 8w
        # Add in the evidence's dtype: in bfloat16 the sum would be rounded to visible steps.
        return draft + unfold_time(correction, frames).to(draft)  # b t 3 8h 8w

    def _finish(self, x: Tensor, cues: Tensor) -> Tensor:
        """``n middle 2h 2w`` and evidence and draft of these frames ``n 8 8h 8w`` -> ``n 3 8h 8w``."""
        x = _run(self.body4[_THROUGH_TEMPORAL:], x, len(x))
        x = F.pixel_shuffle(self.up2(x), 2)  # n narrow 4h 4w
        x = x + self.evidence2(F.pixel_unshuffle(cues, 2))
        x = _run(self.body2, x, len(x))
        x = F.pixel_shuffle(self.up1(x), 2)  # n fine 8h 8w
        return self.exit(F.silu(x))


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with a skip connection, without normalisation (EDSR, arXiv:1707.02921)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        _start_at_zero(self.conv2)  # every block starts as the identity (Fixup, arXiv:1901.09321)

    def forward(self, x: Tensor) -> Tensor:
        """``n c h w -> n c h w``."""
        return x + self.conv2(F.silu(self.conv1(x)))


def _stage(channels: int, blocks: int, *, temporal: bool = True) -> list[nn.Module]:
    """Residual blocks, optionally with one temporal convolution after the first."""
    modules: list[nn.Module] = [ResidualBlock(channels) for _ in range(blocks)]
    if temporal:
        modules.insert(_THROUGH_TEMPORAL - 1, TemporalBlock(channels, TemporalConfig(), attention=False))
    return modules


def _run(modules: nn.ModuleList, x: Tensor, frames: int) -> Tensor:
    for module in modules:
        x = module(x, frames) if isinstance(module, TemporalBlock) else module(x)
    return x


def _start_at_zero(conv: nn.Conv2d) -> None:
    for parameter in conv.parameters():
        nn.init.zeros_(parameter)


def _repeat_over_shuffle(conv: nn.Conv2d) -> None:
    """ICNR initialisation (arXiv:1707.02937): the pixel shuffle after ``conv`` starts without a checkerboard."""
    with torch.no_grad():
        for parameter in conv.parameters():
            first = parameter[::4]  # pixel_shuffle(2) takes 4 neighbouring channels for one output channel
            parameter.copy_(first.repeat_interleave(4, dim=0))
