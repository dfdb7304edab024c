"""Clips that the video tests make for themselves: known pixels, known times, known flags."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags as CodecFlags

from ldm_video.video_io.colour import LUMA_WEIGHTS

SAMPLE_TYPES = {8: np.uint8, 10: np.uint16}


def texture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth blobs with detail in every direction, ``h w 3`` in [0, 1]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width] / 16.0
    waves = rng.uniform(0.3, 1.6, (3, 6, 2)), rng.uniform(0, 6.3, (3, 6))
    image = np.zeros((height, width, 3))
    for channel in range(3):
        for (fy, fx), phase in zip(waves[0][channel], waves[1][channel], strict=True):
            image[..., channel] += np.sin(fy * y + fx * x + phase)
    return (image / 7.0 + 0.5).clip(0.05, 0.95)


def pan(frames: int, height: int = 96, width: int = 128, step: int = 3) -> list[np.ndarray]:
    """A window that slides over :func:`texture`."""
    wide = texture(height, width + step * frames)
    return [wide[:, step * i : step * i + width] for i in range(frames)]


def weave(halves: Sequence[np.ndarray], top_first: bool) -> list[av.VideoFrame]:
    """Pictures at field rate -> half as many interlaced 4:2:0 frames, each field with chroma of its own lines."""
    woven = []
    for early, late in zip(halves[::2], halves[1::2], strict=True):
        top, bottom = (early, late) if top_first else (late, early)
        fields = yuv_frame(top[0::2], upper=0.75), yuv_frame(bottom[1::2], upper=0.25)
        frame = av.VideoFrame(early.shape[1], early.shape[0], "yuv420p")
        for plane, upper, lower in zip(frame.planes, fields[0].planes, fields[1].planes, strict=True):
            rows = np.zeros((plane.height, plane.line_size), np.uint8)
            for parity, field in enumerate((upper, lower)):
                samples = np.frombuffer(bytes(field), np.uint8).reshape(field.height, field.line_size)
                rows[parity::2, : plane.width] = samples[:, : plane.width]
            plane.update(rows.tobytes())
        woven.append(frame)
    return woven


def rgb_to_yuv(rgb: np.ndarray, matrix: str, range_: str, bits: int = 8) -> np.ndarray:
    """R'G'B' in [0, 1] (... 3) -> Y'CbCr code values (float, not rounded) (... 3).

    BT.709-6 3.2-3.4 and BT.601-7 2.5: E'Y = Kr R + (1-Kr-Kb) G + Kb B, E'Cb = (B - Y) / (2 (1-Kb)),
    E'Cr = (R - Y) / (2 (1-Kr)); limited: 219/224 steps from 16/128 times 2^(bits-8); full: 2^bits - 1 steps.
    """
    kr, kb = LUMA_WEIGHTS[matrix]
    r, g, b = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    y = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - y) / (2 * (1 - kb)), (r - y) / (2 * (1 - kr))
    y0, y_span, c0, c_span = _code_levels(range_, bits)
    return np.stack([y0 + y_span * y, c0 + c_span * cb, c0 + c_span * cr], axis=-1)


def yuv_to_rgb(yuv: np.ndarray, matrix: str, range_: str, bits: int = 8) -> np.ndarray:
    """The inverse of :func:`rgb_to_yuv`: code values (... 3) -> R'G'B' (... 3), not clipped to [0, 1]."""
    kr, kb = LUMA_WEIGHTS[matrix]
    y0, y_span, c0, c_span = _code_levels(range_, bits)
    y, cb, cr = (yuv[..., 0] - y0) / y_span, (yuv[..., 1] - c0) / c_span, (yuv[..., 2] - c0) / c_span
    r, b = y + 2 * (1 - kr) * cr, y + 2 * (1 - kb) * cb
    return np.stack([r, (y - kr * r - kb * b) / (1 - kr - kb), b], axis=-1)


def _code_levels(range_: str, bits: int) -> tuple[float, float, float, float]:
    """(black level, luma span, chroma zero, chroma span) in code values."""
    unit = 2 ** (bits - 8)
    if range_ == "limited":
        return 16 * unit, 219 * unit, 128 * unit, 224 * unit
    return 0, 2**bits - 1, 128 * unit, 2**bits - 1


def yuv_frame(
    rgb: np.ndarray,
    matrix: str = "bt601",
    range_: str = "limited",
    bits: int = 8,
    chroma_step: int = 2,
    upper: float = 0.5,
) -> av.VideoFrame:
    """``h w 3`` in [0, 1] -> planar YUV by the standard's formulas, chroma on the left (no FFmpeg involved).

    ``upper``: weight of the upper of two lines; in fields chroma is nearer to one of them (H.262 figure 6-3).
    """
    yuv = rgb_to_yuv(rgb, matrix, range_, bits)
    height, width, _ = yuv.shape
    s = chroma_step
    chroma = yuv[..., 1:]
    if s == 2:
        beside = np.pad(chroma, ((0, 0), (1, 1), (0, 0)), mode="edge")
        columns = (beside[:, :-2:2] + 2 * beside[:, 1:-1:2] + beside[:, 2::2]) / 4  # about every second luma sample
        chroma = upper * columns[0::2] + (1 - upper) * columns[1::2]
    suffix = "" if bits == 8 else f"{bits}le"
    frame = av.VideoFrame(width, height, ("yuv420p" if s == 2 else "yuv444p") + suffix)
    for plane, values in zip(frame.planes, (yuv[..., 0], chroma[..., 0], chroma[..., 1]), strict=True):
        samples = values.round().clip(0, 2**bits - 1).astype(SAMPLE_TYPES[bits])
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : samples.shape[1] * samples.itemsize] = samples.view(np.uint8)
        plane.update(rows.tobytes())
    return frame


def write_clip(
    path: Path,
    frames: Sequence[np.ndarray | av.VideoFrame],
    *,
    rate: Fraction = Fraction(25),
    codec: str = "libx264",
    times: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    tags: dict[str, int] | None = None,
    aspect: Fraction | None = None,
    rotation: tuple[float, bool, bool] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
    interlaced: bool = False,
) -> Path:
    """Encode frames (``h w 3`` in [0, 1], or ready) without any of the project's writing code."""
    ready = [f if isinstance(f, av.VideoFrame) else yuv_frame(f) for f in frames]
    defaults = {"libx264": {"crf": "4", "preset": "ultrafast"}}.get(codec, {})
    with av.open(str(path), "w", container_options=container_options or {}) as output:
        stream = output.add_stream(codec, rate=rate, options=defaults | (options or {}))
        stream.width, stream.height, stream.pix_fmt = ready[0].width, ready[0].height, ready[0].format.name
        context = stream.codec_context
        context.time_base = time_base or 1 / rate
        if aspect is not None:
            context.sample_aspect_ratio = aspect
        for name, value in (tags or {}).items():
            setattr(context, name, value)
        if rotation is not None:
            stream.set_display_rotation(rotation[0], hflip=rotation[1], vflip=rotation[2])
        if interlaced:
            context.flags |= CodecFlags.interlaced_dct | CodecFlags.interlaced_me
        for i, frame in enumerate(ready):
            frame.pts, frame.time_base = (i if times is None else times[i]), context.time_base
            for name, value in (tags or {}).items():
                setattr(frame, name, value)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path


def packet_times(path: Path) -> list[Fraction]:
    """Presentation times of the video packets in seconds, straight from the container."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        return sorted(p.pts * p.time_base for p in container.demux(stream) if p.size)


def packet_bytes(path: Path, kind: str) -> list[tuple[Fraction, bytes]]:
    """(seconds, payload) of every packet of the first stream of ``kind``."""
    with av.open(str(path)) as container:
        stream = next(s for s in container.streams if s.type == kind)
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(stream) if p.size]
