"""Interlaced MPEG-2 recordings of a clip, as from a set-top box: fields woven into frames, low bit rate."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.codec.context import Flags
from av.filter import Graph
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.video_io.subsample import FIELDS, RgbToYuv

RATE = Fraction(25)  # frames per second: 50 fields
_GOP_SIZE = 12  # from one intra frame to the next, and
_B_FRAMES = 2  # between two forward-predicted frames, as in DVB
_FIELD_LINES = 4  # interlaced 4:2:0: one chroma line of each field per four lines


def weave(moments: Iterable[np.ndarray]) -> Iterator[av.VideoFrame]:
    """Weave pictures ``h w 3`` uint8 at field rate into half as many interlaced frames, top field first.

    Even lines come from the first picture of a pair, odd lines from the second; an odd last picture is dropped. Frames
    are BT.601 limited-range 4:2:0. The chroma of each field comes from its own lines only, as in ITU-T H.262.
    """
    graph: Graph | None = None
    for index, moment in enumerate(moments):
        if graph is None:
            height, width, _ = moment.shape
            to_yuv = [RgbToYuv((height // 2, width), "rgb24", "yuv420p", "bt601", lines) for lines in FIELDS]
            graph = Graph()
            source = graph.add_buffer(width=width, height=height // 2, format="yuv420p", time_base=1 / (2 * RATE))
            graph.link_nodes(source, graph.add("weave", "first_field=top"), graph.add("buffersink")).configure()
        half = to_yuv[index % 2](moment[index % 2 :: 2])
        half.pts, half.time_base = index, 1 / (2 * RATE)
        graph.vpush(half)
        if index % 2:
            frame = graph.vpull()
            frame.pts, frame.time_base = index // 2, 1 / RATE
            yield frame


def write_broadcast(path: Path, moments: Iterable[np.ndarray], size: tuple[int, int], bits: float) -> int:
    """Encode pictures at field rate (``h w 3`` uint8) as half as many interlaced frames; an odd last one is dropped.

    Args:
        path: a Matroska file (.mkv); a transport stream of a few small frames is not recognised as one.
        size: (height, width); the height is a multiple of 4, the width of 2.
        bits: average per pixel of the stream; 0.3 is 3.1 Mbit/s at 720x576.

    Returns the number of frames. Raises ``UserError`` for another size.
    """
    if size[0] % _FIELD_LINES or size[1] % 2:
        raise UserError(f"interlaced 4:2:0 needs a height in multiples of {_FIELD_LINES}, not {size[1]}x{size[0]}")
    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="matroska") as container:
        stream = container.add_stream("mpeg2video", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        context = stream.codec_context
        context.thread_count, context.gop_size, context.max_b_frames = 1, _GOP_SIZE, _B_FRAMES
        # without these tags, more than 576 lines or a width of 1280 would be read as BT.709
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT470BG, ColorTrc.SMPTE170M
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        rate = max(1, round(bits * size[0] * size[1] * RATE))
        context.bit_rate = rate
        # a decoder buffer of one second; without a maximum rate the first frames would take any number of bits
        context.options = {"maxrate": str(2 * rate), "bufsize": str(rate), "bf": str(_B_FRAMES)}
        for frame in weave(moments):
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count
