"""An interlaced MPEG-2 recording of a clip, as a set-top box wrote it: fields woven into frames, few bits."""

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

RATE = Fraction(25)  # frames a second: 50 fields
_GROUP = 12  # frames from one intra frame to the next, and
_B_FRAMES = 2  # between two that are predicted forward, as DVB has them
_FIELD_LINES = 4  # 4:2:0 in fields: a chroma line of each field for every four lines


def weave(moments: Iterable[np.ndarray]) -> Iterator[av.VideoFrame]:
    """Pictures ``h w 3`` uint8 at field rate -> half as many frames, marked as interlaced with the top field first.

    A frame's even lines are the first picture's, its odd ones the second's; an odd last picture is dropped. BT.601
    limited range 4:2:0. Each field keeps chroma of its own lines alone, as ITU-T H.262 has it.
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
        size: (height, width); the height is a multiple of 4.
        bits: average of the stream for each pixel; 0.3 is 3.1 Mbit/s at 720x576.

    Returns the number of frames.
    """
    if size[0] % _FIELD_LINES or size[1] % 2:
        raise UserError(f"interlaced 4:2:0 needs a height in multiples of {_FIELD_LINES}, not {size[1]}x{size[0]}")
    count = 0
    with atomic_path(path) as temporary, av.open(str(temporary), "w", format="matroska") as container:
        stream = container.add_stream("mpeg2video", rate=RATE)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        context = stream.codec_context
        context.thread_count, context.gop_size, context.max_b_frames = 1, _GROUP, _B_FRAMES
        # of more than 576 lines, or 1280 wide, what says nothing is read as BT.709
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT470BG, ColorTrc.SMPTE170M
        context.flags |= Flags.interlaced_dct | Flags.interlaced_me
        rate = max(1, round(bits * size[0] * size[1] * RATE))
        context.bit_rate = rate
        # a decoder's buffer of one second; without a ceiling the first frames take what they like
        context.options = {"maxrate": str(2 * rate), "bufsize": str(rate), "bf": str(_B_FRAMES)}
        for frame in weave(moments):
            container.mux(stream.encode(frame))
            count += 1
        container.mux(stream.encode(None))
    return count
