"""Floor 1: read and write video, frames and masks. The only place where pixels are uint8 or YUV.

Reading yields float32 ``c h w`` RGB in [-1, 1], upright, progressive, with square pixels. Writing takes the same and
produces BT.709 limited range, with the source's time stamps, audio and subtitles.
"""

from ldm_video.video_io.colour import Colour
from ldm_video.video_io.masks import MaskSource, parse_box, read_mask
from ldm_video.video_io.probe import DEFAULT_RATE, VideoInfo, probe
from ldm_video.video_io.reader import Frame, FrameReader
from ldm_video.video_io.writer import VideoWriter

__all__ = [
    "DEFAULT_RATE",
    "Colour",
    "Frame",
    "FrameReader",
    "MaskSource",
    "VideoInfo",
    "VideoWriter",
    "parse_box",
    "probe",
    "read_mask",
]
