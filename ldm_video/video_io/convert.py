"""Convert decoded frames to tensors and back, through swscale with its inputs fully specified.

By default swscale assumes BT.601 limited range and repeats chroma samples instead of interpolating them, and its 16-bit
RGB puts white at the shifted code value of the YUV white instead of at 65535. All three are handled here;
``tests/test_video_io_colour.py`` holds the result within 0.05/255 of the standards' own formulas.
"""

from __future__ import annotations

import av
import numpy as np
import torch
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc, Interpolation
from torch import Tensor

from ldm_video.core.tensors import to_signed
from ldm_video.video_io.colour import H273_MATRIX, HD_MIN_WIDTH, SD_MAX_HEIGHT, Colour, Range
from ldm_video.video_io.subsample import RgbToYuv

_SWS_MATRIX: dict[str, Colorspace] = {
    "bt601": Colorspace.ITU601,
    "bt709": Colorspace.ITU709,
    "bt2020": Colorspace.BT2020,
    "smpte240m": Colorspace.SMPTE240M,
    "fcc": Colorspace.FCC,
}
_SWS_RANGE: dict[str, ColorRange] = {"limited": ColorRange.MPEG, "full": ColorRange.JPEG}
_QUALITY = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)
_LIMITED_WHITE = 255 << 8  # limited-range white (235 << 8) expanded by 255/219 around black
_FULL_16 = 0xFFFF
_FULL_RGB = Colour("rgb", "full")


def bit_depth(frame: av.VideoFrame) -> int:
    """Return the bits of the deepest component."""
    return max(component.bits for component in frame.format.components)


def colour_of(frame: av.VideoFrame) -> Colour:
    """Return the colour of a decoded frame from its tags; if untagged, from its size, and limited range."""
    name = frame.format.name
    if frame.format.is_rgb or name.startswith(("pal8", "bayer", "xyz")):
        return Colour("rgb", "full")
    if name.startswith(("gray", "ya", "mono")):
        return Colour("rgb", "limited" if frame.color_range == ColorRange.MPEG else "full")
    full = frame.color_range == ColorRange.JPEG or name.startswith("yuvj")
    range_: Range = "full" if full else "limited"
    matrix = H273_MATRIX.get(int(frame.colorspace))
    if matrix is None or matrix == "rgb":  # "rgb" on a YUV format is a wrong tag
        small = frame.height <= SD_MAX_HEIGHT and frame.width < HD_MIN_WIDTH
        return Colour("bt601" if small else "bt709", range_, assumed=True)
    return Colour(matrix, range_)


def to_pixels(frame: av.VideoFrame, colour: Colour, width: int, height: int) -> Tensor:
    """Convert a decoded frame to float32 ``c h w`` RGB in [-1, 1], resampled to ``width`` x ``height``."""
    if frame.format.name.startswith("grayf32"):
        frame = _grey_to_16_bits(frame)
    depth = bit_depth(frame)
    if colour.matrix == "rgb" and depth <= 8:
        rgb = _reformat(frame, colour, width, height, "rgb24")
        values = rgb.to_ndarray().astype(np.float32) / 255.0  # h w c
    else:
        rgb = _reformat(frame, colour, width, height, "rgb48le")
        values = rgb.to_ndarray().astype(np.float32) / _white_level(frame, colour, depth)  # h w c
    if colour.matrix == "rgb" and colour.range == "limited":  # grey with video levels, full range to swscale
        bits = max(depth, 8)
        unit = (1 << bits - 8) / ((1 << bits) - 1)  # one 8-bit level
        values = (values - 16 * unit) / (219 * unit)
    pixels = torch.from_numpy(values).permute(2, 0, 1)  # h w c -> c h w
    return pixels.clamp(0.0, 1.0).mul(2.0).sub(1.0).contiguous()


def over_black(pixels: Tensor, frame: av.VideoFrame) -> Tensor:
    """Composite ``c h w`` in [-1, 1], converted from ``frame``, over black by the frame's alpha, if any."""
    if not any(component.is_alpha for component in frame.format.components):
        return pixels
    height, width = pixels.shape[-2:]
    rgba = _reformat(frame, colour_of(frame), width, height, "rgba").to_ndarray()
    alpha = torch.from_numpy(np.ascontiguousarray(rgba[..., 3])).float() / 255.0  # h w
    return (pixels + 1.0) * alpha - 1.0


class ToVideoFrame:
    """Convert pixels of one size to BT.709 limited-range frames (BT.709-6 3.5), fully tagged.

    Args:
        size: (height, width).
        pix_fmt: of the frames, such as ``yuv420p``.
    """

    def __init__(self, size: tuple[int, int], pix_fmt: str) -> None:
        self._to_yuv = RgbToYuv(size, "rgb48le", pix_fmt, "bt709")

    def __call__(self, pixels: Tensor) -> av.VideoFrame:
        """Convert float ``c h w`` RGB in [-1, 1] to a frame without a time."""
        scaled = pixels.detach().float().clamp(-1.0, 1.0).add(1.0).mul(_LIMITED_WHITE / 2).round()
        frame = self._to_yuv(scaled.permute(1, 2, 0).cpu().numpy().astype(np.uint16))  # c h w -> h w c
        frame.colorspace = Colorspace.ITU709
        frame.color_range = ColorRange.MPEG
        frame.color_primaries = ColorPrimaries.BT709
        frame.color_trc = ColorTrc.BT709
        return frame


def image_to_pixels(bgr: np.ndarray) -> Tensor:
    """Convert OpenCV's ``h w 3`` BGR (uint8, uint16 or float in [0, 1]) to float32 ``c h w`` RGB in [-1, 1]."""
    rgb = np.ascontiguousarray(bgr[..., ::-1])
    if rgb.dtype == np.uint8:
        return to_signed(torch.from_numpy(rgb).permute(2, 0, 1)).contiguous()  # h w c -> c h w
    peak = _FULL_16 if rgb.dtype == np.uint16 else 1.0
    values = np.clip(rgb.astype(np.float32) / peak, 0.0, 1.0)
    return torch.from_numpy(values * 2.0 - 1.0).permute(2, 0, 1).contiguous()  # h w c -> c h w


def _grey_to_16_bits(frame: av.VideoFrame) -> av.VideoFrame:
    """Convert float grey in [0, 1], as in EXR and PFM mattes, to 16 bits; swscale would assume 16/255 to 235/255."""
    values = frame.to_ndarray().clip(0.0, 1.0)  # h w
    return av.VideoFrame.from_ndarray((values * _FULL_16).round().astype(np.uint16), format="gray16le")


def refit(frame: av.VideoFrame, colour: Colour, width: int, height: int, pix_fmt: str) -> av.VideoFrame:
    """Convert a frame to another size, pixel format, matrix and range, keeping its time."""
    fitted = _reformat(frame, colour_of(frame), width, height, pix_fmt, colour)
    fitted.pts, fitted.time_base = frame.pts, frame.time_base
    return fitted


def _reformat(
    frame: av.VideoFrame, colour: Colour, width: int, height: int, target: str, target_colour: Colour = _FULL_RGB
) -> av.VideoFrame:
    return frame.reformat(
        width=width,
        height=height,
        format=target,
        src_colorspace=_SWS_MATRIX.get(colour.matrix),
        dst_colorspace=_SWS_MATRIX.get(target_colour.matrix),
        src_color_range=_SWS_RANGE[colour.range],
        dst_color_range=_SWS_RANGE[target_colour.range],
        interpolation=_QUALITY,
        threads=1,
    )


def _white_level(frame: av.VideoFrame, colour: Colour, depth: int) -> float:
    """Return where swscale's 16-bit RGB puts the white of this frame."""
    if frame.format.is_rgb:
        return _FULL_16
    if colour.matrix != "rgb" and colour.range == "limited":
        return _LIMITED_WHITE
    return ((1 << depth) - 1) << (16 - depth)
