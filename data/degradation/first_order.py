"""High-res -> low-res like an SD recording: blur, resize, noise, then a real video codec.

The order is that of Real-ESRGAN (Wang et al. 2021, section 3), with the JPEG step replaced by a video codec, as in
RealBasicVSR (Chan et al. 2022, section 3.3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data.degradation.codec import ENCODERS, codec_round_trip, interlaced_round_trip
from data.degradation.fields import field_moments
from data.degradation.filters import RESIZE_KERNELS, gaussian_blur, lowres_size, resize
from ldm_video.core.tensors import size_of, to_bytes, to_signed


@dataclass(frozen=True)
class DegradeConfig:
    """Ranges from which a degradation is drawn; equal ends fix a value.

    Attributes:
        blur_sigma: sigma of a Gaussian blur, in high-res pixels; 0 does not blur.
        noise_sigma: sigma of Gaussian noise, in levels of 0..255, drawn once per clip; 0 adds none.
        crf: codec quality on x264's scale (mapped to a quantiser for MPEG-2 and MPEG-4); negative for no codec.
        resize_kernels: one of these is drawn; ``bicubic``, ``bilinear`` (both antialiased) or ``area``.
        codecs: one of these is drawn; keys of :data:`data.degradation.codec.ENCODERS`.
        interlaced: encode as interlaced ``mpeg2video`` and deinterlace again.

    Raises ``ValueError`` for unknown kernels or codecs, and for ``interlaced`` without ``mpeg2video`` and a crf.
    """

    blur_sigma: tuple[float, float] = (0.0, 0.0)
    noise_sigma: tuple[float, float] = (0.0, 0.0)
    crf: tuple[int, int] = (-1, -1)
    resize_kernels: tuple[str, ...] = ("bicubic",)
    codecs: tuple[str, ...] = ("h264",)
    interlaced: bool = False

    def __post_init__(self) -> None:
        unknown = set(self.resize_kernels) - set(RESIZE_KERNELS)
        if unknown or not self.resize_kernels:
            raise ValueError(f"unknown resize kernels {sorted(unknown)}; use bicubic, bilinear or area")
        unknown = set(self.codecs) - set(ENCODERS)
        if unknown or not self.codecs:
            raise ValueError(f"unknown codecs {sorted(unknown)}; use some of {sorted(ENCODERS)}")
        if self.interlaced and (self.codecs != ("mpeg2video",) or self.crf[0] < 0):
            raise ValueError(f"fields are coded by mpeg2video with a crf of 0 or more, not {self.codecs} {self.crf}")


def degrade_once(clip: Tensor, scale: float, config: DegradeConfig, rng: np.random.Generator) -> Tensor:
    """Degrade ``t c h w`` in [-1, 1] to ``t c h/scale w/scale`` in [-1, 1], quantised to 256 levels."""
    moments = field_moments(clip) if config.interlaced else clip
    lowres = to_bytes(degrade_pixels(moments, scale, config, rng))
    low, high = config.crf
    if high >= 0:
        crf = int(rng.integers(max(low, 0), high + 1))
        frames = rearrange(lowres, "t c h w -> t h w c").numpy()
        codec = config.codecs[rng.integers(len(config.codecs))]
        coded = interlaced_round_trip(frames, crf) if config.interlaced else codec_round_trip(frames, codec, crf)
        lowres = rearrange(torch.from_numpy(coded), "t h w c -> t c h w")
    return to_signed(lowres)


def degrade_pixels(clip: Tensor, scale: float, config: DegradeConfig, rng: np.random.Generator) -> Tensor:
    """Blur, resize and add noise: :func:`degrade_once` without the codec and the quantisation to 256 levels."""
    size = lowres_size(size_of(clip), scale)
    sigma = rng.uniform(*config.blur_sigma)
    kernel = config.resize_kernels[rng.integers(len(config.resize_kernels))]
    noise = rng.uniform(*config.noise_sigma)
    lowres = resize(gaussian_blur(clip, sigma), size, kernel)
    if noise > 0:
        grain = torch.from_numpy(rng.standard_normal(tuple(lowres.shape), dtype=np.float32))
        lowres = lowres + grain * (noise / 127.5)
    return lowres.clamp(-1, 1)
