"""Where a writer's frames go: a container with audio and subtitles, bare packets, PNG files, or a picture."""

from __future__ import annotations

import math
import os
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import cv2
import numpy as np
from av.codec.context import Flags as CodecFlags
from av.format import Flags as FormatFlags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io.container import file_url
from ldm_video.video_io.convert import ToVideoFrame
from ldm_video.video_io.encoders import Encoder
from ldm_video.video_io.packets import Packets, read_packets, reorder_depth, write_packets
from ldm_video.video_io.probe import VideoInfo
from ldm_video.video_io.remux import StreamCopier

_MOV_FAMILY = {".mp4", ".m4v", ".mov"}
_MAX_TIME_SCALE = 10_000_000  # ticks per second; time scales are 32-bit in MP4
_X265_DELAY = 2  # up to this many frames, x265 takes decoding times from uninitialised memory; there are no B-frames


class Sink(Protocol):
    """Takes frames ``c h w``, or finished parts. ``finish`` completes it; ``close`` may follow at any point."""

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None: ...

    def join(self, parts: Sequence[Path]) -> int: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _Encoding(ABC):
    """Encodes frames with the stream's encoder."""

    def __init__(self, stream: av.VideoStream) -> None:
        context = stream.codec_context
        self._stream = stream
        self._to_frame = ToVideoFrame((context.height, context.width), context.pix_fmt)
        self._tick = context.time_base
        self._step = max(1, round(1 / context.framerate / self._tick))
        self._last_tick: int | None = None
        self._count = 0

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        frame = self._to_frame(pixels)
        tick = round(pts_seconds / self._tick)
        if self._last_tick is not None:
            tick = max(tick, self._last_tick + 1)
        frame.pts, frame.time_base, frame.duration = tick, self._tick, self._step
        self._last_tick, self._count = tick, self._count + 1
        self._take(self._stream.encode(frame))

    @abstractmethod
    def _take(self, packets: list[av.Packet]) -> None: ...


class VideoSink(_Encoding):
    """A container with the picture, and what ``copier`` adds."""

    def __init__(self, output: av.container.OutputContainer, stream: av.VideoStream, copier: StreamCopier) -> None:
        super().__init__(stream)
        self._output, self._copier = output, copier
        output.start_encoding()  # writes the header: an unwritable path fails before any work is done

    def join(self, parts: Sequence[Path]) -> int:
        """Append parts that :class:`PacketSink` wrote, unchanged. Returns the number of frames."""
        depth = max(map(reorder_depth, parts), default=0)
        clock: deque[int] = deque()  # upcoming decoding times
        frames = 0
        for part in parts:
            packets = read_packets(part)
            late = 0 if self._last_tick is None else max(0, self._last_tick + 1 - min(packets.pts))
            times = sorted(pts + late for pts in packets.pts)
            if not frames:
                clock.extend(times[0] - (depth - i) * self._step for i in range(depth))
            clock.extend(times)
            self._last_tick = times[-1]
            frames += len(times)
            for data, pts, key in zip(packets.data, packets.pts, packets.keys, strict=True):
                packet = av.Packet(data)
                packet.stream, packet.time_base, packet.duration = self._stream, self._tick, self._step
                packet.pts, packet.dts, packet.is_keyframe = pts + late, clock.popleft(), key
                self._mux(packet)
        return frames

    def finish(self) -> None:
        if self._count:
            self._take(self._stream.encode(None))
        self._copier.advance(None)
        self._output.close()

    def close(self) -> None:
        self._copier.close()
        with suppress(av.FFmpegError, OSError):  # nothing left to do after finish(); after an error the file is removed
            self._output.close()

    def _take(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._count <= _X265_DELAY:
                packet.dts = packet.pts
            self._mux(packet)

    def _mux(self, packet: av.Packet) -> None:
        until = packet.pts * packet.time_base
        self._output.mux(packet)
        self._copier.advance(until)


class PacketSink(_Encoding):
    """A part of a video: encoded frames, the first a key frame, in a file of :mod:`packets`."""

    def __init__(self, temporary: Path, output: av.container.OutputContainer, stream: av.VideoStream) -> None:
        super().__init__(stream)
        self._temporary, self._output = temporary, output  # never started: it only configures the encoder
        self._packets = Packets([], [], [])

    def join(self, parts: Sequence[Path]) -> int:
        raise NotImplementedError("a part is not put together from parts")

    def finish(self) -> None:
        self._take(self._stream.encode(None))
        write_packets(self._temporary, self._packets)

    def close(self) -> None:
        self._output.close()

    def _take(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            self._packets.data.append(bytes(packet))
            self._packets.pts.append(int(packet.pts * packet.time_base / self._tick))
            self._packets.keys.append(bool(packet.is_keyframe))


class FolderSink:
    """``000000.png``, ``000001.png``, ..."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        folder.mkdir()

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        write_image(self._next(), pixels)

    def join(self, parts: Sequence[Path]) -> int:
        """Append the frames of other folders, as hard links if the file system has them, else as copies."""
        before = self._count
        for part in parts:
            for file in sorted(part.iterdir()):
                target = self._next()
                try:
                    os.link(file, target)
                except OSError:
                    shutil.copyfile(file, target)
        return self._count - before

    def finish(self) -> None: ...

    def close(self) -> None: ...

    def _next(self) -> Path:
        self._count += 1
        return self._folder / f"{self._count - 1:06d}.png"


class StillSink:
    """One picture."""

    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        temporary.touch()  # an unwritable path fails before any work is done
        self._written = False

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        if self._written:
            raise self._full()
        write_image(self._temporary, pixels)
        self._written = True

    def join(self, parts: Sequence[Path]) -> int:
        raise self._full()

    def finish(self) -> None: ...

    def close(self) -> None: ...

    def _full(self) -> UserError:
        return UserError(f"{self._target} is an image and holds one frame; give a folder or a video file")


def write_image(path: Path, pixels: Tensor) -> None:
    """Write ``c h w`` in [-1, 1] as an 8-bit picture. ``UserError`` for one that is too large for its format."""
    bgr = to_bytes(pixels).permute(1, 2, 0).flip(-1).cpu().numpy()  # c h w -> h w c
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    encoded, data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr), quality)
    if not encoded:
        height, width = bgr.shape[:2]
        raise UserError(f"a picture of {width}x{height} does not fit into {path.suffix}; give a .png as --output")
    path.write_bytes(data.tobytes())


def time_base(source: VideoInfo | None, rate: Fraction, container: str) -> Fraction:
    """Return a tick in which both the source's time stamps and the steps of ``rate`` are whole numbers.

    AVI holds no time stamps: each tick takes a slot of the file, and players take the tick for the frame rate.
    """
    if source is None or source.time_base is None or container == "avi":
        return 1 / rate
    ticks = math.lcm(source.time_base.denominator, rate.numerator)
    return Fraction(1, ticks) if ticks <= _MAX_TIME_SCALE else source.time_base


def open_output(temporary: Path, target: Path) -> av.container.OutputContainer:
    """Open a container of ``target``'s format. No file is created before its header is written.

    Raises ``UserError`` for an unknown format, and for one that writes several files.
    """
    options = {"movflags": "+faststart"} if target.suffix.lower() in _MOV_FAMILY else {}
    try:
        output = av.open(file_url(temporary), "w", container_options=options)
    except ValueError as error:
        raise UserError(f"unknown output format {target.suffix} of {target}; use .mp4, .mkv or .mov") from error
    if output.format.flags & FormatFlags.no_file.value:  # writes files of its own, under its own names: HLS, DASH
        raise UserError(f"{target.suffix} of {target} is not a single file; use .mp4, .mkv or .mov")
    if output.format.name == "rawvideo":  # it takes any packets, and a player would take those for pixels
        raise UserError(f"{target.suffix} of {target} is for bare pixels, not for a codec; use .mp4, .mkv or .mov")
    return output


def add_video(
    output: av.container.OutputContainer,
    target: Path,
    encoder: Encoder,
    arguments: dict[str, str],
    size: tuple[int, int],
    rate: Fraction,
) -> av.VideoStream:
    """Add the video stream, its encoder configured. ``UserError`` if the format cannot hold the codec."""
    os.environ.setdefault("SVT_LOG", "1")  # SVT-AV1 prints a page of settings otherwise; 1 = errors
    try:
        stream = output.add_stream(encoder.name, rate=rate, options=arguments)
    except ValueError as error:
        raise UserError(f"{target.suffix} files cannot hold {encoder.name}; use .mkv or another codec") from error
    context = stream.codec_context
    context.height, context.width = size
    context.pix_fmt = encoder.pix_fmt
    context.sample_aspect_ratio = Fraction(1)
    context.colorspace = Colorspace.ITU709
    context.color_range = ColorRange.MPEG
    context.color_primaries = ColorPrimaries.BT709
    context.color_trc = ColorTrc.BT709
    context.flags |= CodecFlags.frame_duration
    if encoder.name == "libx265" and target.suffix.lower() in _MOV_FAMILY:
        context.codec_tag = "hvc1"  # the tag that Apple's players require
    return stream
