"""Chroma siting: written where decoders expect it, and read accordingly where frames are untagged.

In 4:2:0 and 4:2:2 a chroma sample is co-sited with every second luma sample of its line ("left": H.262 6.1.1.8, and
type 0 of H.273, which is the default of H.264 and HEVC). By default swscale puts it half-way between two, and reads it
there in untagged frames. A decoder that follows the standard then shows colour shifted by half a pixel: two pixels in
the output if those are low-res frames.
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
# In a frame chroma lies half-way between two lines; in fields a quarter of a field line above and below that, so that
# all lines of the interleaved frame are equally far apart (H.262 figure 6-3).
_CHROMA_POSITIONS = {
    "frame": "out_chroma_loc=left",
    "top": "out_h_chr_pos=0:out_v_chr_pos=64",  # in 1/256 of a line
    "bottom": "out_h_chr_pos=0:out_v_chr_pos=192",
}


Lines = Literal["frame", "top", "bottom"]
FIELDS: tuple[Lines, Lines] = ("top", "bottom")
# Decoders that tag no frame, of formats with left-sited chroma. That of JPEG, MPEG-1 and H.263 is tagged as centred.
_UNTAGGED_DECODERS = frozenset({"prores", "dnxhd", "vp8", "vp9", "libvpx", "libvpx-vp9"})
# Capture formats. 4:2:2 video has left-sited chroma (BT.601-7, BT.709-6); full-range JPEG need not. For 4:2:0 it is
# unknown, and Matroska's tag, if any, as for PAL DV, must stand.
_CAPTURE_CODECS = frozenset(
    {"ffv1", "v210", "rawvideo", "huffyuv", "ffvhuff", "utvideo", "magicyuv", "lagarith", "cfhd", "jpeg2000"}
)


def is_left_untagged(context: VideoCodecContext, layout: VideoFormat, range_: Range) -> bool:
    """Return whether the frames of a stream have left-sited chroma without a tag that says so."""
    if context.codec.canonical_name == "av1":
        return _av1_is_untagged(context.extradata or b"")
    halved = layout.chroma_width(2) == 1 and layout.chroma_height(2) == 2
    return context.name in _UNTAGGED_DECODERS or (context.name in _CAPTURE_CODECS and halved and range_ == "limited")


def _av1_is_untagged(header: bytes) -> bool:
    """Return whether ``chroma_sample_position`` is 0, unknown (AV1 6.4.2; ``av1C``, AV1-ISOBMFF 2.3).

    ``header`` is the ``av1C`` of MP4 and Matroska. Encoders leave the field 0 for left-sited chroma, as in earlier
    codecs.
    """
    return len(header) >= 4 and header[0] == 0x81 and header[2] & 3 == 0


class LeftChroma:
    """Tags the frames of one clip, of one size and format, as left-sited chroma."""

    def __init__(self) -> None:
        self._graph: Graph | None = None

    def __call__(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Return the same picture, tagged; its time is lost."""
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
    """Converts RGB frames of one size, ``rgb24`` or ``rgb48le``, to limited-range YUV.

    Args:
        size: (height, width).
        source: ``rgb24`` or ``rgb48le``.
        target: pixel format of the result, such as ``yuv420p``.
        matrix: ``bt601`` or ``bt709``.
        lines: of a whole ``frame``, or of its ``top`` or ``bottom`` field.
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
        scale = self._graph.add("scale", f"out_color_matrix={matrix}:{_CHROMA_POSITIONS[lines]}:{_SCALE}")
        self._graph.link_nodes(entry, scale, self._graph.add("format", target), self._graph.add("buffersink"))
        self._graph.configure()

    def __call__(self, rgb: np.ndarray) -> av.VideoFrame:
        """Convert ``h w 3`` of the source format's dtype to a frame without a time."""
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format=self._source)
        frame.pts = 0
        self._graph.vpush(frame)
        converted = self._graph.vpull()
        converted.pts, converted.time_base = None, Fraction(0)  # PyAV's value for none: an encoder sets its own
        return converted
