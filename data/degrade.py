"""High-res -> low-res as an SD recording has it: blur, resize, noise, then a real video codec.

The order of Real-ESRGAN (Wang et al. 2021, section 3) with its JPEG step replaced by a codec that works in time, as
RealBasicVSR does (Chan et al. 2022, section 3.3).
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import cv2
import numpy as np
import torch
import torch.nn.functional as F
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from einops import rearrange
from torch import Tensor

from ldm_video.core.tensors import to_bytes, to_signed

# `veryfast` is the slowest x264 preset whose set-up is negligible on small clips. No look-ahead, no macroblock tree and
# sliced threads are what `zerolatency` sets: without them x264 fills a queue of 40 frames before it writes one.
_ENCODER_OPTIONS = {
    "h264": {"preset": "veryfast", "tune": "zerolatency"},
    "hevc": {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none:pools=none:frame-threads=1"},
}
_ENCODERS = {"h264": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "mpeg2video": "mpeg2video"}
_SMALLEST = {"hevc": 32}
# One matrix both ways. A cast of one level is a colour shift that a network would learn to undo.
# Without these flags swscale truncates (a level lost in each conversion) and repeats chroma samples.
_FLAGS = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_EXACT = {
    "src_colorspace": Colorspace.ITU601,
    "dst_colorspace": Colorspace.ITU601,
    "interpolation": _FLAGS,
    "threads": 1,
}
_TO_YUV = {**_EXACT, "src_color_range": ColorRange.JPEG, "dst_color_range": ColorRange.MPEG}
_TO_RGB = {**_EXACT, "src_color_range": ColorRange.MPEG, "dst_color_range": ColorRange.JPEG}


@dataclass(frozen=True)
class DegradeConfig:
    """Ranges that a degradation is drawn from; equal ends fix a value.

    Attributes:
        blur_sigma: of a Gaussian, in high-res pixels; 0 does not blur.
        noise_sigma: of Gaussian noise, in levels of 0..255, drawn once for a clip; 0 adds none.
        crf: quality of the codec, x264's scale (mapped to a quantiser for MPEG-2 and MPEG-4). Negative: no codec.
        resize_kernels: one is drawn of ``bicubic``, ``bilinear`` (both antialiased) and ``area``.
        codec: ``h264``, ``hevc``, ``mpeg4`` or ``mpeg2video``.
    """

    blur_sigma: tuple[float, float] = (0.0, 0.0)
    noise_sigma: tuple[float, float] = (0.0, 0.0)
    crf: tuple[int, int] = (-1, -1)
    resize_kernels: tuple[str, ...] = ("bicubic",)
    codec: str = "h264"

    def __post_init__(self) -> None:
        unknown = set(self.resize_kernels) - {"bicubic", "bilinear", "area"}
        if unknown or not self.resize_kernels:
            raise ValueError(f"unknown resize kernels {sorted(unknown)}; use bicubic, bilinear or area")
        if self.codec not in _ENCODERS:
            raise ValueError(f"unknown codec {self.codec!r}; use one of {sorted(_ENCODERS)}")


PRESETS = {
    "clean": DegradeConfig(),
    "sd": DegradeConfig((0.6, 1.6), (0.0, 6.0), (16, 26), ("bicubic", "area", "bilinear")),
    "sd_fixed": DegradeConfig((1.2, 1.2), (3.0, 3.0), (20, 20)),
}


def degrade(clip: Tensor, scale: int, config: DegradeConfig, rng: np.random.Generator) -> Tensor:
    """Make the low-res version of a clip.

    Args:
        clip: ``t c h w`` float32 in [-1, 1]; ``h`` and ``w`` are multiples of ``scale``.

    Returns ``t c h/scale w/scale`` float32 in [-1, 1], on the grid of 256 levels.
    """
    lowres = to_bytes(degrade_pixels(clip, scale, config, rng))
    low, high = config.crf
    if high >= 0:
        crf = int(rng.integers(max(low, 0), high + 1))
        frames = rearrange(lowres, "t c h w -> t h w c").numpy()
        lowres = rearrange(torch.from_numpy(codec_round_trip(frames, config.codec, crf)), "t h w c -> t c h w")
    return to_signed(lowres)


def degrade_pixels(clip: Tensor, scale: int, config: DegradeConfig, rng: np.random.Generator) -> Tensor:
    """Blur, resize and noise, the part of :func:`degrade` before the codec; not yet rounded to 256 levels."""
    height, width = clip.shape[-2:]
    if height % scale or width % scale:
        raise ValueError(f"a clip of {height}x{width} cannot be made {scale} times smaller; crop it to multiples")
    sigma = rng.uniform(*config.blur_sigma)
    kernel = config.resize_kernels[rng.integers(len(config.resize_kernels))]
    noise = rng.uniform(*config.noise_sigma)
    lowres = _resize(gaussian_blur(clip, sigma), (height // scale, width // scale), kernel)
    if noise > 0:
        grain = torch.from_numpy(rng.standard_normal(tuple(lowres.shape), dtype=np.float32))
        lowres = lowres + grain * (noise / 127.5)
    return lowres.clamp(-1, 1)


def gaussian_blur(clip: Tensor, sigma: float) -> Tensor:
    """Gaussian blur of each frame of ``t c h w``, to four sigma, the border mirrored."""
    if sigma <= 0:
        return clip
    side = 2 * int(4 * sigma + 0.5) + 1
    frames = rearrange(clip, "t c h w -> t h w c").contiguous().numpy()
    blurred = [cv2.GaussianBlur(f, (side, side), sigma, borderType=cv2.BORDER_REFLECT_101) for f in frames]
    return rearrange(torch.from_numpy(np.stack(blurred)), "t h w c -> t c h w")


def _resize(clip: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    if tuple(clip.shape[-2:]) == size:
        return clip
    if kernel == "area":
        return F.interpolate(clip, size=size, mode="area")
    return F.interpolate(clip, size=size, mode=kernel, antialias=True, align_corners=False)


def codec_round_trip(frames: np.ndarray, codec: str, crf: int) -> np.ndarray:
    """Encode and decode in memory.

    Args:
        frames: ``t h w c`` uint8 RGB, any size.
        codec: a key of the configuration's codecs.
        crf: x264's scale, 0..51.

    Returns the same number of frames of the same size, ``t h w c`` uint8 RGB. 4:2:0, BT.601 limited range, tagged and
    converted by the same matrix in both directions.
    """
    height, width = frames.shape[1:3]
    smallest = _SMALLEST.get(codec, 2)
    bottom, right = (max(smallest, n + n % 2) - n for n in (height, width))
    padded = np.pad(frames, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else frames
    decoded = _decode(_encode(padded, codec, crf))
    if len(decoded) != len(frames):
        raise RuntimeError(f"{codec} gave {len(decoded)} frames back for {len(frames)}")
    return np.ascontiguousarray(np.stack(decoded)[:, :height, :width])


def _encode(frames: np.ndarray, codec: str, crf: int) -> io.BytesIO:
    """NUT: the one light container that holds every codec, with time stamps and no index to rewrite."""
    buffer, reformatter = io.BytesIO(), VideoReformatter()
    with av.open(buffer, "w", format="nut") as container:
        stream = container.add_stream(_ENCODERS[codec], rate=Fraction(25))
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        context.max_b_frames = 0
        if codec in _ENCODER_OPTIONS:
            context.options = {**_ENCODER_OPTIONS[codec], "crf": str(crf)}
        else:
            # MPEG-2/4 have a quantiser of 1..31 in place of CRF; like x264's it doubles for every 6 steps.
            quantiser = str(int(np.clip(round(2 ** ((crf - 12) / 6)), 1, 31)))
            context.options = {"qmin": quantiser, "qmax": quantiser}
        for array in frames:
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")
            container.mux(stream.encode(reformatter.reformat(frame, format="yuv420p", **_TO_YUV)))
        container.mux(stream.encode(None))
    buffer.seek(0)
    return buffer


def _decode(buffer: io.BytesIO) -> list[np.ndarray]:
    reformatter = VideoReformatter()
    with av.open(buffer, "r", format="nut", options={"probesize": "32", "analyzeduration": "0"}) as container:
        container.streams.video[0].codec_context.thread_count = 1
        decoded = container.decode(video=0)
        return [reformatter.reformat(frame, format="rgb24", **_TO_RGB).to_ndarray() for frame in decoded]
