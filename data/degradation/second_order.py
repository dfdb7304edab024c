"""Two rounds of blur, resize, noise, JPEG and video codec, with parameters that drift slowly over the clip.

This extends Real-ESRGAN's second-order degradation (Wang et al. 2021, section 3.2) over time, with the ranges,
probabilities and steps of RealBasicVSR's training (Chan et al. 2022, section 3.3). Differences: drifts reflect at both
ends of their range, resizing is antialiased, and bit rates are per pixel, so that they do not depend on the crop size.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from data.degradation.codec import rate_round_trip
from data.degradation.filters import RESIZE_KERNELS, Profile, bell_kernel, lowres_size, resize, sinc_kernel
from data.motion import bounded_walk
from ldm_video.core.tensors import size_of, to_bytes, to_signed

Range = tuple[float, float]

_SINC_PROBABILITY = 0.1
# profile, isotropic, fraction of the non-sinc kernels
_BELL_KERNELS: tuple[tuple[Profile, bool, float], ...] = (
    ("gaussian", True, 0.45),
    ("gaussian", False, 0.25),
    ("generalized", True, 0.12),
    ("generalized", False, 0.03),
    ("plateau", True, 0.12),
    ("plateau", False, 0.03),
)
_BETA: dict[Profile, Range] = {"gaussian": (1.0, 1.0), "generalized": (0.5, 4.0), "plateau": (1.0, 2.0)}
_LARGE_KERNEL = 13  # kernels of at least this side can hold a lower cutoff
_WHITE_PHOTONS = 255  # photons of a white pixel at a Poisson scale of 1
_MIN_SIDE = 8  # minimum side in pixels after a resize
# `step` of `drift` for each parameter, in its unit: the change per frame is at most 1.5 times this
_STEPS = {"sigma": 0.02, "angle": 0.3, "beta": 0.05, "cutoff": 0.06, "gaussian": 0.1, "poisson": 0.005, "jpeg": 3.0}


@dataclass(frozen=True)
class Round:
    """One round of the chain.

    Attributes:
        blur_probability: probability of blurring the clip.
        blur_sigma: along each axis of the kernel, in pixels of the round's input.
        resize_modes: probabilities of upsampling, downsampling and keeping the size.
        resize: smallest and largest factor, relative to the round's input.
        resize_step: step of the factor's :func:`drift`; it changes by at most 1.5 times this per frame.
        gaussian: sigma of Gaussian noise, in levels of 0..255.
        poisson: scale of Poisson noise; at 1, white is 255 photons.
        jpeg: JPEG quality, 0..100.
    """

    blur_probability: float = 1.0
    blur_sigma: Range = (0.2, 3.0)
    resize_modes: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize: Range = (0.15, 1.5)
    resize_step: float = 0.015
    gaussian: Range = (1.0, 30.0)
    poisson: Range = (0.05, 3.0)
    jpeg: Range = (30.0, 95.0)


@dataclass(frozen=True)
class SecondOrderConfig:
    """Ranges and probabilities from which :func:`degrade_twice` draws.

    Attributes:
        rounds: the two rounds.
        kernel_sides: smallest and largest side of a blur kernel; odd sides in this range are drawn.
        grey_noise: probability that the noise of a round is the same in all channels.
        codecs: one of these is drawn for each round; keys of :data:`data.degradation.codec.ENCODERS`.
        bits: bit rate of the codec per pixel. 0.1 to 1 is 1e4 to 1e5 bit/s at 64x64 and 25 frames per second.
        final_sinc: probability of a sinc filter after the last resize.
    """

    rounds: tuple[Round, Round] = (
        Round(),
        Round(0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), 0.03, (1.0, 25.0), (0.05, 2.5)),
    )
    kernel_sides: tuple[int, int] = (7, 21)
    grey_noise: float = 0.4
    codecs: tuple[str, ...] = ("h264_live", "mpeg4", "mpeg2video")
    bits: Range = (0.1, 1.0)
    final_sinc: float = 0.8


Frames = list[np.ndarray]  # `h w c` float32 in [-1, 1]; sizes may differ from frame to frame


def degrade_twice(clip: Tensor, scale: float, config: SecondOrderConfig, rng: np.random.Generator) -> Tensor:
    """Degrade ``t c h w`` in [-1, 1] to ``t c h/scale w/scale`` in [-1, 1], quantised to 256 levels."""
    size = lowres_size(size_of(clip), scale)
    frames = list(rearrange(clip, "t c h w -> t h w c").contiguous().numpy())
    frames = coded(one_round(frames, config.rounds[0], config, rng), config, rng)
    frames = one_round(frames, config.rounds[1], config, rng)
    if rng.random() < 0.5:
        frames = fitted(coded(frames, config, rng), size, config, rng)
    else:
        frames = coded(fitted(frames, size, config, rng), config, rng)
    lowres = rearrange(torch.from_numpy(np.stack(frames)), "t h w c -> t c h w")
    return to_signed(to_bytes(lowres))


def one_round(frames: Frames, round_: Round, config: SecondOrderConfig, rng: np.random.Generator) -> Frames:
    """Apply blur, resize, noise and JPEG; the sizes of the returned frames drift."""
    if rng.random() < round_.blur_probability:
        kernels = blur_kernels(rng, len(frames), round_.blur_sigma, config.kernel_sides)
        frames = [_filter(frame, kernel) for frame, kernel in zip(frames, kernels, strict=True)]
    return jpeg(noisy(resized(frames, round_, rng), round_, config.grey_noise, rng), round_.jpeg, rng)


def drift(rng: np.random.Generator, frames: int, ends: Range, step: float) -> np.ndarray:
    """Return a random walk ``t`` within ``ends``: uniform start, reflecting ends, at most 1.5 ``step`` per frame."""
    low, high = ends
    path = rng.uniform(low, high) + bounded_walk(rng, frames, step / 2, step / 8) - low
    if high == low:
        return np.full(frames, low)
    folded = np.mod(path, 2 * (high - low))
    return low + np.minimum(folded, 2 * (high - low) - folded)


def blur_kernels(rng: np.random.Generator, frames: int, sigma: Range, sides: tuple[int, int]) -> list[np.ndarray]:
    """Draw one kernel ``side side`` per frame, all of the same kind and size."""
    side = int(rng.choice(np.arange(sides[0], sides[1] + 1, 2)))
    if rng.random() < _SINC_PROBABILITY:
        return _sinc_kernels(rng, frames, side, np.pi / (3 if side < _LARGE_KERNEL else 5))
    profile, alike, _ = _BELL_KERNELS[rng.choice(len(_BELL_KERNELS), p=[share for *_, share in _BELL_KERNELS])]
    first, second = (drift(rng, frames, sigma, _STEPS["sigma"]) for _ in range(2))
    angle = drift(rng, frames, (-np.pi, np.pi), _STEPS["angle"])
    beta = drift(rng, frames, _BETA[profile], _STEPS["beta"])
    return [
        bell_kernel(side, (s, s if alike else t), a, profile, b)
        for s, t, a, b in zip(first, second, angle, beta, strict=True)
    ]


def resized(frames: Frames, round_: Round, rng: np.random.Generator) -> Frames:
    """Upsample, downsample or keep the frames, by a drifting factor, with one kernel per clip."""
    kernel = RESIZE_KERNELS[rng.integers(len(RESIZE_KERNELS))]
    low, high = round_.resize
    ends = ((min(1.0, high), high), (low, 1.0), (1.0, 1.0))[rng.choice(3, p=round_.resize_modes)]
    factors = drift(rng, len(frames), ends, round_.resize_step)
    sizes = [tuple(max(_MIN_SIDE, round(n * f)) for n in x.shape[:2]) for x, f in zip(frames, factors, strict=True)]
    return [_resize(frame, (height, width), kernel) for frame, (height, width) in zip(frames, sizes, strict=True)]


def noisy(frames: Frames, round_: Round, grey_share: float, rng: np.random.Generator) -> Frames:
    """Add Gaussian or Poisson noise, new in every frame, shared or independent across channels; clip to [-1, 1]."""
    gaussian, grey = rng.random() < 0.5, rng.random() < grey_share
    kind, ends = ("gaussian", round_.gaussian) if gaussian else ("poisson", round_.poisson)
    result = []
    for frame, strength in zip(frames, drift(rng, len(frames), ends, _STEPS[kind]), strict=True):
        light = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)[..., None] if grey else frame
        if gaussian:
            noise = rng.standard_normal(light.shape, dtype=np.float32) * (strength / 127.5)
        else:
            photons = (light.clip(-1, 1) + 1) / 2 * _WHITE_PHOTONS
            noise = (rng.poisson(photons) - photons) * (2 * strength / _WHITE_PHOTONS)
        result.append((frame + noise).clip(-1, 1).astype(np.float32))
    return result


def jpeg(frames: Frames, quality: Range, rng: np.random.Generator) -> Frames:
    """Compress each frame as a 4:2:0 JPEG of drifting quality."""
    result = []
    for frame, value in zip(frames, drift(rng, len(frames), quality, _STEPS["jpeg"]), strict=True):
        options = [cv2.IMWRITE_JPEG_QUALITY, round(value)]
        _, data = cv2.imencode(".jpg", cv2.cvtColor(_bytes(frame), cv2.COLOR_RGB2BGR), options)
        result.append(_signed(cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)))
    return result


def coded(frames: Frames, config: SecondOrderConfig, rng: np.random.Generator) -> Frames:
    """Pass the frames through a video codec. A stream has one size, so frames are resized to that of the first."""
    codec = config.codecs[rng.integers(len(config.codecs))]
    bits = rng.uniform(*config.bits)
    height, width = frames[0].shape[:2]
    stream = np.stack([_bytes(_resize(frame, (height, width), "bicubic")) for frame in frames])
    return [_signed(frame) for frame in rate_round_trip(stream, codec, bits)]


def fitted(frames: Frames, size: tuple[int, int], config: SecondOrderConfig, rng: np.random.Generator) -> Frames:
    """Resize to the low-res ``size`` (height, width), then apply a sinc filter with probability ``final_sinc``."""
    kernel = RESIZE_KERNELS[rng.integers(len(RESIZE_KERNELS))]
    frames = [_resize(frame, size, kernel) for frame in frames]
    if rng.random() >= config.final_sinc:
        return frames
    side = int(rng.choice(np.arange(config.kernel_sides[0], config.kernel_sides[1] + 1, 2)))
    kernels = _sinc_kernels(rng, len(frames), side, np.pi / 3)
    return [_filter(frame, kernel) for frame, kernel in zip(frames, kernels, strict=True)]


def _sinc_kernels(rng: np.random.Generator, frames: int, side: int, lowest: float) -> list[np.ndarray]:
    return [sinc_kernel(side, cutoff) for cutoff in drift(rng, frames, (lowest, np.pi), _STEPS["cutoff"])]


def _filter(frame: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return cv2.filter2D(frame, -1, kernel, borderType=cv2.BORDER_REFLECT_101)


def _resize(frame: np.ndarray, size: tuple[int, int], kernel: str) -> np.ndarray:
    pixels = rearrange(torch.from_numpy(frame), "h w c -> 1 c h w").contiguous()
    return rearrange(resize(pixels, size, kernel), "1 c h w -> h w c").contiguous().numpy()


def _bytes(frame: np.ndarray) -> np.ndarray:
    return to_bytes(torch.from_numpy(frame)).numpy()


def _signed(frame: np.ndarray) -> np.ndarray:
    return to_signed(torch.from_numpy(frame)).numpy()
