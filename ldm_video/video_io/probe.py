"""Probe what a file, folder or still image holds, before it is read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal

import av
from av.container import InputContainer
from av.video.stream import VideoStream

from ldm_video.core.errors import UserError
from ldm_video.video_io.colour import HDR_TRANSFERS, Colour
from ldm_video.video_io.container import Damage, clock_jumps, clock_origin, decoded_frames, open_video
from ldm_video.video_io.convert import bit_depth, colour_of
from ldm_video.video_io.orientation import Orientation, orientation_of
from ldm_video.video_io.stills import is_animated, is_image, list_frames, read_image
from ldm_video.video_io.subsample import is_left_untagged

DEFAULT_RATE = Fraction(25)  # for folders of frames, which have no clock
MAX_RATE = 1000  # a higher "rate" is a clock, not a frame rate
_FLAG_FRAMES = 8
_SANE_ASPECT = (Fraction(1, 4), Fraction(4))


@dataclass(frozen=True)
class VideoInfo:
    """Facts about a clip. ``height`` and ``width`` are what the reader yields: upright, square pixels."""

    path: Path
    kind: Literal["video", "frames", "image"]
    height: int
    width: int
    coded_height: int
    coded_width: int
    colour: Colour
    bit_depth: int
    orientation: Orientation = Orientation()  # noqa: RUF009 (frozen)
    sample_aspect_ratio: Fraction = Fraction(1)
    rate: Fraction | None = None
    frames: int | None = None  # as the container claims; may be wrong
    duration: Fraction | None = None  # seconds
    time_base: Fraction | None = None
    time_origin: Fraction = Fraction(0)  # seconds that reader and writer subtract from the container's clock
    clock_jumps: bool = False  # the container's clock may restart midway
    interlaced: bool | None = None  # according to the bitstream; see interlace.py for detection from pixels
    audio_streams: int = 0
    subtitle_streams: int = 0
    codec: str = ""
    container: str = ""  # FFmpeg's name for the format
    left_untagged: bool = False  # chroma is left-sited, and no frame is tagged so
    hdr: str = ""  # "PQ" or "HLG" when the transfer curve is not SDR's

    @property
    def size(self) -> tuple[int, int]:
        """``(height, width)`` of the frames that the reader yields."""
        return self.height, self.width

    def summary(self) -> str:
        """Return one human-readable line: ``a.mp4: 768x576 (coded 720x576), 25 fps, 250 frames, ...``."""
        parts = [f"{self.width}x{self.height}"]
        if (self.coded_width, self.coded_height) != (self.width, self.height):
            parts[0] += f" (coded {self.coded_width}x{self.coded_height})"
        if self.rate is not None:
            parts.append(f"{float(self.rate):.6g} fps")
        if self.frames is not None:
            parts.append(f"{self.frames} frame{'s' * (self.frames != 1)}")
        if self.duration is not None:
            parts.append(f"{float(self.duration):.2f} s")
        parts += [self.codec] if self.codec else []
        parts.append(f"{self.bit_depth}-bit {self.colour}")
        parts += [f"HDR {self.hdr}"] if self.hdr else []
        parts += ["interlaced"] if self.interlaced else []
        parts += [f"{self.audio_streams} audio"] if self.audio_streams else []
        parts += [f"{self.subtitle_streams} subtitles"] if self.subtitle_streams else []
        return f"{self.path.name}: " + ", ".join(parts)


def probe(path: str | Path) -> VideoInfo:
    """Return facts about ``path``: a video file, a folder of frames, or a still image; else raise ``UserError``.

    An animated PNG is a video; other files of several pictures are refused.
    """
    path = Path(path)
    if path.is_dir():
        files = list_frames(path)
        return _probe_still(path, "frames", files[0], len(files))
    if is_image(path) and not is_animated(path):
        return _probe_still(path, "image", path, 1)
    with open_video(path) as (container, stream):
        frames = islice(decoded_frames(container, stream, Damage()), _FLAG_FRAMES)
        first = next(frames, None)
        if first is None:
            raise UserError(f"{path} has no frame that can be decoded; the file is empty or damaged")
        interlaced = first.interlaced_frame or any(frame.interlaced_frame for frame in frames)  # one is held at a time
        return _video_info(path, container, stream, first, interlaced)


def _probe_still(path: Path, kind: Literal["frames", "image"], first: Path, frames: int) -> VideoInfo:
    image = read_image(first)
    height, width = image.shape[:2]
    return VideoInfo(
        path=path,
        kind=kind,
        height=height,
        width=width,
        coded_height=height,
        coded_width=width,
        colour=Colour("rgb", "full"),
        bit_depth=8 * image.dtype.itemsize,
        frames=frames,
        codec=first.suffix.lower().lstrip("."),
    )


def _video_info(
    path: Path, container: InputContainer, stream: VideoStream, first: av.VideoFrame, interlaced: bool
) -> VideoInfo:
    orientation = orientation_of(first)
    aspect = _pixel_aspect(stream)
    rate, duration = _frame_rate(stream), _duration(container, stream)
    height, width = first.height, square_width(first.width, aspect)
    colour = colour_of(first)
    if orientation.transpose:
        height, width = width, height
    return VideoInfo(
        path=path,
        kind="video",
        height=height,
        width=width,
        coded_height=first.height,
        coded_width=first.width,
        colour=colour,
        bit_depth=bit_depth(first),
        orientation=orientation,
        sample_aspect_ratio=aspect,
        rate=rate,
        frames=_frame_count(stream, rate, duration),
        duration=duration,
        time_base=stream.time_base,
        time_origin=clock_origin(container),
        clock_jumps=clock_jumps(container),
        interlaced=bool(interlaced),
        audio_streams=len(container.streams.audio),
        subtitle_streams=len(container.streams.subtitles),
        codec=stream.codec_context.name,
        container=container.format.name,
        left_untagged=is_left_untagged(stream.codec_context, first.format, colour.range),
        hdr=HDR_TRANSFERS.get(int(first.color_trc), ""),
    )


def square_width(width: int, aspect: Fraction) -> int:
    """Return the width, to the nearest pixel, that shows ``width`` samples of ``aspect`` with square pixels."""
    return max(1, round(width * aspect))


def _pixel_aspect(stream: VideoStream) -> Fraction:
    aspect = stream.sample_aspect_ratio
    if not aspect or not _SANE_ASPECT[0] <= aspect <= _SANE_ASPECT[1]:
        return Fraction(1)  # absent, or a bogus value that would blow the picture up
    return aspect


def _frame_rate(stream: VideoStream) -> Fraction | None:
    for rate in (stream.guessed_rate, stream.average_rate):
        if rate and 0 < rate <= MAX_RATE:
            return rate
    return None


def _frame_count(stream: VideoStream, rate: Fraction | None, duration: Fraction | None) -> int | None:
    """Return the container's count; None if it has none, or if an edit list shows fewer frames than are stored."""
    if not stream.frames or (rate and duration and stream.frames > duration * rate + 1):
        return None
    return stream.frames


def _duration(container: InputContainer, stream: VideoStream) -> Fraction | None:
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    tag = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", ""))  # Matroska
    if tag:  # end of the last frame, wherever the first one begins
        begins = max(0, stream.start_time or 0) * (stream.time_base or 0)
        return int(tag[1]) * 3600 + int(tag[2]) * 60 + Fraction(tag[3]) - begins
    return Fraction(container.duration, av.time_base) if container.duration else None
