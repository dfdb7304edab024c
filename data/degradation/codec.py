"""In-memory round trips through real video codecs."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from ldm_video.video_io.encoders import repeatable_x264
from ldm_video.video_io.interlace import deinterlace
from ldm_video.video_io.subsample import FIELDS, RgbToYuv

RATE = Fraction(25)
# h264: as for files. h264_live: as for cameras and streams, with no look-ahead and a fast preset.
ENCODERS = {
    "h264": "libx264", "h264_live": "libx264", "hevc": "libx265", "mpeg4": "mpeg4", "mpeg2video": "mpeg2video",
}  # fmt: skip
_OPTIONS = {
    "h264": {"preset": "medium", **repeatable_x264()},
    "h264_live": {"preset": "veryfast", "tune": "zerolatency", **repeatable_x264()},
    "hevc": {"preset": "ultrafast", "tune": "zerolatency", "x265-params": "log-level=none:pools=none:frame-threads=1"},
}
_LOOKS_AHEAD = {"h264"}  # and uses B-frames, as many as x264's preset chooses
_MIN_SIDE = {"hevc": 32}
_FIELD_LINES = 4  # interlaced 4:2:0: each field has one chroma line per four frame lines
_BROADCAST_GOP = 12  # GOP length, as in DVB
_BROADCAST_B_FRAMES = 2  # between two P-frames, as in DVB
# The same matrix in both directions: a network would learn to undo a colour shift, even of a single level.
# Without these flags swscale truncates (losing one level per conversion) and repeats chroma samples.
_FLAGS = (
    Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
)
_TO_RGB = {
    "src_colorspace": Colorspace.ITU601,
    "src_color_range": ColorRange.MPEG,
    "dst_color_range": ColorRange.JPEG,
    "interpolation": _FLAGS,
    "threads": 1,
}


def codec_round_trip(frames: np.ndarray, codec: str, crf: int) -> np.ndarray:
    """Encode and decode in memory at constant quality.

    Args:
        frames: ``t h w c`` uint8 RGB, any size.
        codec: a key of :data:`ENCODERS`.
        crf: 0..51 on x264's scale; mapped to a quantiser for MPEG-2 and MPEG-4.

    Returns the same number of frames of the same size, ``t h w c`` uint8 RGB. The stream is 4:2:0, BT.601 limited
    range, and is tagged and converted with the same matrix in both directions.
    Raises ``RuntimeError`` when the codec drops or adds frames.
    """
    return _progressive(frames, codec, _constant_quality(codec, crf))


def rate_round_trip(frames: np.ndarray, codec: str, bits: float) -> np.ndarray:
    """Like :func:`codec_round_trip`, but at an average bit rate of ``bits`` per pixel instead of constant quality.

    A VBV buffer of one second limits the first frames, which would otherwise use any number of bits.
    """
    rate = max(1, round(bits * frames.shape[1] * frames.shape[2] * RATE))
    options = {"b": str(rate), "maxrate": str(2 * rate), "bufsize": str(rate)}
    return _progressive(frames, codec, {**_OPTIONS.get(codec, {}), **options})


def interlaced_round_trip(moments: np.ndarray, crf: int) -> np.ndarray:
    """Simulate an interlaced broadcast: weave pairs of pictures into frames, encode as interlaced MPEG-2, decode,
    deinterlace.

    Args:
        moments: ``(2 t) h w c`` uint8 RGB pictures at field rate, any size. Frame ``i`` takes its even lines from
            picture ``2 i`` and its odd lines from picture ``2 i + 1`` (top field first).
        crf: mapped to MPEG-2's quantiser as in :func:`codec_round_trip`.

    Returns ``t h w c`` uint8 RGB: frame ``i`` shows picture ``2 i``, as ``infer.py`` would read the recording.
    Raises ``ValueError`` for an odd number of pictures.
    """
    if len(moments) % 2:
        raise ValueError(f"{len(moments)} moments do not make whole frames; give two for each")
    height, width = moments.shape[1:3]
    padded = _pad(moments, -height % _FIELD_LINES, width % 2)
    reformatter = VideoReformatter()
    field_size = (padded.shape[1] // 2, padded.shape[2])
    to_yuv = [RgbToYuv(field_size, "rgb24", "yuv420p", "bt601", lines) for lines in FIELDS]
    halves = (to_yuv[index % 2](moment[index % 2 :: 2]) for index, moment in enumerate(padded))
    options = {**_constant_quality("mpeg2video", crf), "g": str(_BROADCAST_GOP), "bf": str(_BROADCAST_B_FRAMES)}
    buffer = _encode(_weave(halves), padded.shape[1:3], "mpeg2video", options, interlaced=True)
    decoded = [_to_rgb(frame, reformatter) for frame in deinterlace(_decode(buffer), "tff")]
    return _crop(decoded, len(moments) // 2, (height, width))


def _constant_quality(codec: str, crf: int) -> dict[str, str]:
    if codec in _OPTIONS:
        return {**_OPTIONS[codec], "crf": str(crf)}
    # MPEG-2/4 have a quantiser of 1..31 instead of CRF; like x264's, it doubles every 6 CRF steps.
    quantiser = str(int(np.clip(round(2 ** ((crf - 12) / 6)), 1, 31)))
    return {"qmin": quantiser, "qmax": quantiser}


def _progressive(frames: np.ndarray, codec: str, options: dict[str, str]) -> np.ndarray:
    height, width = frames.shape[1:3]
    smallest = _MIN_SIDE.get(codec, 2)
    padded = _pad(frames, *(max(smallest, n + n % 2) - n for n in (height, width)))
    reformatter = VideoReformatter()
    to_yuv = RgbToYuv(padded.shape[1:3], "rgb24", "yuv420p", "bt601")
    buffer = _encode(map(to_yuv, padded), padded.shape[1:3], codec, options)
    return _crop([_to_rgb(frame, reformatter) for frame in _decode(buffer)], len(frames), (height, width))


def _pad(frames: np.ndarray, bottom: int, right: int) -> np.ndarray:
    return np.pad(frames, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="edge") if bottom or right else frames


def _crop(decoded: list[np.ndarray], count: int, size: tuple[int, int]) -> np.ndarray:
    if len(decoded) != count:
        raise RuntimeError(f"the codec gave {len(decoded)} frames back for {count}")
    return np.ascontiguousarray(np.stack(decoded)[:, : size[0], : size[1]])


def _encode(
    frames: Iterable[VideoFrame], size: tuple[int, ...], codec: str, options: dict[str, str], interlaced: bool = False
) -> io.BytesIO:
    """Encode into NUT: the one light container that holds every codec, with timestamps and no index to rewrite."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="nut") as container:
        stream = container.add_stream(ENCODERS[codec], rate=RATE)
        stream.height, stream.width, stream.pix_fmt = size[0], size[1], "yuv420p"
        context = stream.codec_context
        context.thread_count = 1
        if interlaced:
            context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        elif codec not in _LOOKS_AHEAD:
            context.max_b_frames = 0
        context.options = options
        for frame in frames:
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    buffer.seek(0)
    return buffer


def _decode(buffer: io.BytesIO) -> Iterator[VideoFrame]:
    with av.open(buffer, "r", format="nut", options={"probesize": "32", "analyzeduration": "0"}) as container:
        container.streams.video[0].codec_context.thread_count = 1
        yield from container.decode(video=0)


def _weave(halves: Iterable[VideoFrame]) -> Iterator[VideoFrame]:
    """Weave fields, top field first, into half as many frames of twice the height, flagged as interlaced."""
    graph: Graph | None = None
    for index, half in enumerate(halves):
        if graph is None:
            graph = Graph()
            source = graph.add_buffer(
                width=half.width, height=half.height, format=half.format, time_base=1 / (2 * RATE)
            )
            graph.link_nodes(source, graph.add("weave", "first_field=top"), graph.add("buffersink")).configure()
        half.pts, half.time_base = index, 1 / (2 * RATE)
        graph.vpush(half)
        if index % 2:
            frame = graph.vpull()
            frame.pts, frame.time_base = index // 2, 1 / RATE
            yield frame


def _to_rgb(frame: VideoFrame, reformatter: VideoReformatter) -> np.ndarray:
    return reformatter.reformat(frame, format="rgb24", **_TO_RGB).to_ndarray()
