"""Where chroma samples lie: written where decoders look for them, and read so where nothing is said.

In 4:2:0 and 4:2:2 a chroma sample stands beside every second luma sample of its line ("left": H.262 6.1.1.8, and type 0
of H.273, which is what H.264 and HEVC mean when nothing is said). swscale, asked for a conversion and no more, puts it
half way between two, and reads it there in frames without a tag. A decoder that trusts the standard then shows colour
half a pixel beside its place: of low-res frames, two pixels of what is made of them.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import av
import numpy as np
from av.filter import Graph
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from ldm_video.video_io.colour import Range

_SCALE = "in_range=pc:out_range=tv:flags=bicubic+accurate_rnd+full_chroma_int+full_chroma_inp"
# In a frame chroma stands half way between two lines; in fields a quarter of a line of theirs above and below that, so
# that all lines of the frame that they are woven into are equally far apart (H.262 figure 6-3).
_PLACES = {
    "frame": "out_chroma_loc=left",
    "top": "out_h_chr_pos=0:out_v_chr_pos=64",  # in parts of 256 of a line
    "bottom": "out_h_chr_pos=0:out_v_chr_pos=192",
}


Lines = Literal["frame", "top", "bottom"]
FIELDS: tuple[Lines, Lines] = ("top", "bottom")
# Decoders that tag no frame, of formats whose chroma stands left. JPEG's, MPEG-1's and H.263's is tagged as centred.
_UNTAGGED = frozenset({"prores", "dnxhd", "vp8", "vp9", "libvpx", "libvpx-vp9"})
# Those that captures come in. Video in 4:2:2 has its chroma on the left (BT.601-7, BT.709-6); JPEG's, of full range,
# need not. Of 4:2:0 nobody knows, and what Matroska may say of it, as of PAL DV, has to stand.
_CAPTURES = frozenset(
    {"ffv1", "v210", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "lagarith", "cfhd", "jpeg2000"}
)


def is_left_untagged(context: VideoCodecContext, layout: VideoFormat, range_: Range) -> bool:
    """Whether the frames of a stream have their chroma on the left, and come without a tag that says so."""
    if context.codec.canonical_name == "av1":
        return _av1_is_silent(context.extradata or b"")
    halved = layout.chroma_width(2) == 1 and layout.chroma_height(2) == 2
    return context.name in _UNTAGGED or (context.name in _CAPTURES and halved and range_ == "limited")


def _av1_is_silent(header: bytes) -> bool:
    """Whether ``chroma_sample_position`` is 0, unknown (AV1 6.4.2; the ``av1C`` of MP4 and Matroska, AV1-ISOBMFF 2.3).

    Encoders leave it so for what is on the left, as in the codecs before.
    """
    return len(header) >= 4 and header[0] == 0x81 and header[2] & 3 == 0


class LeftChroma:
    """Marks the frames of one clip, of one size and format, as having their chroma on the left."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The same picture; its time is not kept."""
        if self._graph is None:
            self._graph = Graph()
            size = {"width": frame.width, "height": frame.height}
            entry = self._graph.add_buffer(**size, format=frame.format, time_base=1)
            mark = self._graph.add("setparams", "chroma_location=left")
            self._graph.link_nodes(entry, mark, self._graph.add("buffersink")).configure()
        frame.pts = 0
        self._graph.vpush(frame)
        return self._graph.vpull()


class RgbToYuv:
    """Frames of one size, from ``source`` (``rgb24``, ``rgb48le``) to limited-range ``target`` (``yuv420p``, ...).

    Args:
        size: (height, width).
        matrix: ``bt601`` or ``bt709``.
        lines: of a whole ``frame``, or of the ``top`` or ``bottom`` field of one.
    """

    def __init__(
        self,
        size: tuple[int, int],
        source: str,
        target: str,
        matrix: str,
        lines: Lines = "frame",
    ) -> None:
        self._source, self._graph = source, Graph()
        height, width = size
        entry = self._graph.add_buffer(width=width, height=height, format=source, time_base=1)
        scale = self._graph.add("scale", f"out_color_matrix={matrix}:{_PLACES[lines]}:{_SCALE}")
        self._graph.link_nodes(entry, scale, self._graph.add("format", target), self._graph.add("buffersink"))
        self._graph.configure()

    def __call__(self, rgb: np.ndarray) -> av.VideoFrame:
        """``h w 3`` of the source format's type -> a frame without a time."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=self._source)
        frame.pts = 0
        self._graph.vpush(frame)
        converted = self._graph.vpull()
        converted.pts, converted.time_base = None, Fraction(0)  # PyAV's word for none: an encoder gives its own
        return converted
