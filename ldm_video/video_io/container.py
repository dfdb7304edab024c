"""Open containers and decode what is there, however damaged."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
from av.codec.codec import UnknownCodecError
from av.container import InputContainer
from av.format import Flags as FormatFlags
from av.stream import Disposition
from av.video.codeccontext import VideoCodecContext
from av.video.stream import VideoStream

from ldm_video.core.errors import UserError

VIDEO_SUFFIXES = frozenset(
    {
        ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mkv",
        ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".nut", ".ogm", ".ogv", ".qt", ".rm", ".rmvb",
        ".tod", ".ts", ".vob", ".webm", ".wmv", ".y4m",
    }
)  # fmt: skip
"""Suffixes of the files that count as videos when a folder is searched."""

# Local files only: a playlist must not make us fetch from the network, or wait for it to grow.
_OPTIONS = {"protocol_whitelist": "file,crypto,data", "max_reload": "0"}
_NOT_VIDEO_FORMATS = {"tty"}  # FFmpeg renders any .txt or .nfo as ANSI art
_SEE_ALPHA = {"vp8": "libvpx", "vp9": "libvpx-vp9"}  # FFmpeg's own decoders of these drop it


@dataclass
class Damage:
    """How many packets could not be read or decoded, and how many frames have holes that the decoder concealed.

    Only some formats detect the latter: those with checksums, and decoders that run out of bits.
    """

    errors: int = 0
    frames: int = 0
    packets: int = 0  # marked as corrupt by the container, whatever became of their frames

    @property
    def concealed(self) -> int:
        return max(self.frames, self.packets)


def file_url(path: Path) -> str:
    """Return ``path`` as a URL for FFmpeg, so that a colon in its name is not taken for a protocol."""
    return f"file:{path.absolute()}"


def require_file(path: Path) -> None:
    """Raise ``UserError`` unless ``path`` is a regular, non-empty file (a pipe or device could hang)."""
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path")
    if not path.is_file():
        raise UserError(f"{path} is not a regular file; give a video file, an image or a folder of frames")
    if path.stat().st_size == 0:
        raise UserError(f"{path} is empty (0 bytes); give a video file, an image or a folder of frames")


def open_input(path: Path) -> InputContainer:
    """Open a container for reading; raise ``UserError`` if FFmpeg cannot."""
    require_file(path)
    try:
        container = av.open(file_url(path), mode="r", options=_OPTIONS, metadata_errors="replace")
    except av.error.PermissionError as error:
        raise UserError(f"cannot read {path} (permission denied); check its permissions") from error
    except (av.FFmpegError, UnicodeError, OSError) as error:
        raise _not_a_video(path, getattr(error, "strerror", None) or str(error)) from error
    if container.format.name in _NOT_VIDEO_FORMATS:
        container.close()
        raise _not_a_video(path, "it is text")
    return container


@contextmanager
def open_video(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open the container and its main video stream (never the cover picture of a song)."""
    with open_input(path) as container:
        stream = _main_video_stream(container)
        if stream is None:
            raise _not_a_video(path, "it holds no video stream")
        if stream.codec_context is None:
            raise UserError(f"{path}: no decoder for its video codec; convert it with ffmpeg to H.264 first")
        # Frame threading would lose frames around a damaged one, and different ones with another number of cores.
        stream.thread_type = "SLICE"
        yield container, stream


def alpha_decoder(path: Path, stream: VideoStream) -> VideoCodecContext | None:
    """For :func:`decoded_frames`, where the stream's own decoder drops the alpha that the container announces.

    ``UserError`` when this build of FFmpeg has none that keeps it.
    """
    announced = any(key.lower() == "alpha_mode" and value == "1" for key, value in stream.metadata.items())
    name = _SEE_ALPHA.get(stream.codec_context.codec.canonical_name)
    if name is None or not announced:
        return None
    try:
        decoder = cast(VideoCodecContext, av.CodecContext.create(name, "r"))
    except UnknownCodecError as error:
        raise UserError(
            f"{path} has transparency that cannot be read here (no {name}); save it as PNG files or as ProRes 4444"
        ) from error
    decoder.extradata = stream.codec_context.extradata
    return decoder


def decoded_frames(
    container: InputContainer, stream: VideoStream, damage: Damage, decoder: VideoCodecContext | None = None
) -> Iterator[av.VideoFrame]:
    """Yield every frame that decodes, in presentation order. Ends with the file's packets; errors are counted.

    ``decoder``: takes the place of the stream's own.
    """
    decoder = decoder or stream.codec_context
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            return
        except av.FFmpegError:
            damage.errors += 1
            yield from _flush(decoder, damage)
            return
        try:
            frames = decoder.decode(packet)
        except av.error.EOFError:
            return
        except av.FFmpegError:
            damage.errors += 1
            continue
        damage.packets += packet.is_corrupt
        for frame in frames:
            damage.frames += frame.is_corrupt
            yield frame


def begins_whole(path: Path) -> bool:
    """Return whether the first frame that decodes is the first one in the file."""
    damage = Damage()
    with open_video(path) as (container, stream):
        first = next(decoded_frames(container, stream, damage), None)
        return first is not None and not damage.errors and first.pts == stream.start_time


def clock_jumps(container: InputContainer) -> bool:
    """Return whether the container's clock may begin anywhere and restart: MPEG-TS and -PS."""
    return bool(container.format.flags & FormatFlags.ts_discont.value)


def clock_origin(container: InputContainer) -> Fraction:
    """Return the seconds to subtract from time stamps: where MPEG-TS and -PS clocks start; 0 for other containers."""
    if not clock_jumps(container):
        return Fraction(0)
    starts = [s.start_time * s.time_base for s in container.streams if s.start_time is not None and s.time_base]
    return min(starts, default=Fraction(0))


def _flush(decoder: VideoCodecContext, damage: Damage) -> list[av.VideoFrame]:
    try:
        return decoder.decode(None)
    except av.FFmpegError:
        damage.errors += 1
        return []


def _main_video_stream(container: InputContainer) -> VideoStream | None:
    real = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    return best if best in real else next(iter(real), None)


def _not_a_video(path: Path, why: str) -> UserError:
    return UserError(f"{path} is not a video that can be read ({why}); give a video file, an image or a frame folder")
