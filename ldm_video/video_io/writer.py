"""HD video out: BT.709 limited range, the source's clock, sound and subtitles; or PNG files; whole or absent."""

from __future__ import annotations

import errno
import math
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import av
import cv2
import numpy as np
import torch
from av.codec.context import Flags as CodecFlags
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.files import atomic_path
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io.container import file_url
from ldm_video.video_io.convert import to_video_frame
from ldm_video.video_io.encoders import Encoder, check_size, find_encoder
from ldm_video.video_io.probe import VideoInfo
from ldm_video.video_io.remux import StreamCopier
from ldm_video.video_io.stills import IMAGE_SUFFIXES, is_image

_MOV_FAMILY = {".mp4", ".m4v", ".mov"}
_MAX_TIME_SCALE = 10_000_000  # ticks a second; time scales are 32-bit in MP4
_X265_DELAY = 2  # x265 gives clips of up to two frames decoding times from uninitialised memory; such have no B-frames
_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class _Sink(Protocol):
    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None: ...

    def finish(self) -> None: ...

    def close(self) -> None: ...


class VideoWriter:
    """``with VideoWriter(path, size, source, rate) as writer: writer.write(pixels, pts_seconds)``.

    ``path``: a video file by its suffix (.mp4, .mkv, .mov, ...), a folder (no suffix, or an existing folder) for
    numbered PNG files, or one .png/.jpg/... image. The file appears under its name only after a clean end.
    ``size``: (height, width), exactly what is written: a size that 4:2:0 cannot hold is refused, never padded.
    ``source``: where sound, subtitles and the clock's resolution come from. MP4 and MOV keep time stamps exactly;
    Matroska counts milliseconds. ``warnings`` names each stream that could not be copied.
    Raises ``UserError``: the path exists, cannot be written, no space left, unknown codec, unsupported size.
    """

    def __init__(
        self,
        path: str | Path,
        size: tuple[int, int],
        source: VideoInfo | None,
        rate: Fraction,
        codec: str = "libx264",
        crf: int = 16,
        preset: str = "medium",
        overwrite: bool = False,
    ) -> None:
        self.path, self.size, self.rate = Path(path), size, Fraction(rate)
        self.warnings: list[str] = []
        self.frames = 0
        self._source = source
        self._encoder = find_encoder(codec)
        self._arguments = self._encoder.arguments(crf, preset)
        self._to_folder = self.path.is_dir() or not self.path.suffix
        if not self._to_folder and not is_image(self.path):
            check_size(self._encoder, size)
        _check_target(self.path, source, overwrite)
        self._last: Fraction | None = None
        self._session: AbstractContextManager[_Sink] | None = None
        self._sink: _Sink | None = None

    def __enter__(self) -> Self:
        self._session = self._open()
        self._sink = self._session.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        self._session.__exit__(kind, error, trace)

    def write(self, pixels: Tensor, pts_seconds: Fraction | None = None) -> None:
        """Append one frame: ``c h w`` float RGB in [-1, 1], shown at ``pts_seconds`` (default: index / rate)."""
        assert self._sink is not None, "write inside `with VideoWriter(...)`"
        if tuple(pixels.shape) != (3, *self.size):
            raise ValueError(f"frame of shape {tuple(pixels.shape)}, expected {(3, *self.size)}")
        if not torch.isfinite(pixels).all():
            raise UserError(
                f"frame {self.frames} has pixels that are not numbers; use a wider data type (bfloat16 or float32)"
            )
        pts = self.frames / self.rate if pts_seconds is None else pts_seconds
        if self._last is not None and pts <= self._last:
            raise ValueError(f"time stamps must increase: {pts} after {self._last}")
        with _explained(self.path):
            self._sink.write(pixels, pts)
        self._last = pts
        self.frames += 1

    @contextmanager
    def _open(self) -> Iterator[_Sink]:
        with atomic_path(self.path) as temporary:
            with _explained(self.path):
                sink = self._make_sink(temporary)
            try:
                yield sink
                if not self.frames:
                    raise UserError(f"no frame to write to {self.path}; the input holds none")
                with _explained(self.path):
                    sink.finish()
            finally:
                sink.close()

    def _make_sink(self, temporary: Path) -> _Sink:
        if self._to_folder:
            return _FolderSink(temporary)
        if is_image(self.path):
            return _StillSink(temporary, self.path)
        output = _open_output(temporary, self.path)
        stream = _add_video(output, self.path, self._encoder, self._arguments, self.size, self.rate)
        stream.codec_context.time_base = time_base(self._source, self.rate)
        return _VideoSink(output, stream, StreamCopier(self._source, output, self.path, self.warnings))


def time_base(source: VideoInfo | None, rate: Fraction) -> Fraction:
    """Ticks in which both the source's time stamps and the steps of ``rate`` are whole numbers."""
    if source is None or source.time_base is None:
        return 1 / rate
    ticks = math.lcm(source.time_base.denominator, rate.numerator)
    return Fraction(1, ticks) if ticks <= _MAX_TIME_SCALE else source.time_base


class _VideoSink:
    def __init__(self, output: av.container.OutputContainer, stream: av.VideoStream, copier: StreamCopier) -> None:
        self._output, self._stream, self._copier = output, stream, copier
        self._tick = stream.codec_context.time_base
        self._step = max(1, round(1 / stream.codec_context.framerate / self._tick))
        self._last_tick: int | None = None
        self._count = 0
        output.start_encoding()  # the header is written now: an unwritable path shows before any work is done

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        frame = to_video_frame(pixels, self._stream.codec_context.pix_fmt)
        tick = round(pts_seconds / self._tick)
        if self._last_tick is not None:
            tick = max(tick, self._last_tick + 1)
        frame.pts, frame.time_base, frame.duration = tick, self._tick, self._step
        self._last_tick, self._count = tick, self._count + 1
        self._mux(self._stream.encode(frame))

    def finish(self) -> None:
        self._mux(self._stream.encode(None))
        self._copier.advance(None)
        self._output.close()

    def close(self) -> None:
        self._copier.close()
        with suppress(av.FFmpegError, OSError):  # after finish() nothing is left; after an error the file goes anyway
            self._output.close()

    def _mux(self, packets: list[av.Packet]) -> None:
        for packet in packets:
            if self._count <= _X265_DELAY:
                packet.dts = packet.pts
            until = packet.pts * packet.time_base
            self._output.mux(packet)
            self._copier.advance(until)


class _FolderSink:
    """``000000.png``, ``000001.png``, ..."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        folder.mkdir()

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        _write_image(self._folder / f"{self._count:06d}.png", pixels)
        self._count += 1

    def finish(self) -> None: ...

    def close(self) -> None: ...


class _StillSink:
    def __init__(self, temporary: Path, target: Path) -> None:
        self._temporary, self._target = temporary, target
        temporary.touch()  # an unwritable path shows before any work is done
        self._written = False

    def write(self, pixels: Tensor, pts_seconds: Fraction) -> None:
        if self._written:
            raise UserError(f"{self._target} is an image and holds one frame; give a folder or a video file")
        _write_image(self._temporary, pixels)
        self._written = True

    def finish(self) -> None: ...

    def close(self) -> None: ...


def _write_image(path: Path, pixels: Tensor) -> None:
    bgr = to_bytes(pixels).permute(1, 2, 0).flip(-1).cpu().numpy()  # c h w -> h w c
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix.lower() in (".jpg", ".jpeg") else []
    _, data = cv2.imencode(path.suffix, np.ascontiguousarray(bgr), quality)
    path.write_bytes(data.tobytes())


def _open_output(temporary: Path, target: Path) -> av.container.OutputContainer:
    options = {"movflags": "+faststart"} if target.suffix.lower() in _MOV_FAMILY else {}
    try:
        return av.open(file_url(temporary), "w", container_options=options)
    except ValueError as error:
        raise UserError(f"unknown output format {target.suffix} of {target}; use .mp4, .mkv or .mov") from error


def _add_video(
    output: av.container.OutputContainer,
    target: Path,
    encoder: Encoder,
    arguments: dict[str, str],
    size: tuple[int, int],
    rate: Fraction,
) -> av.VideoStream:
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
        context.codec_tag = "hvc1"  # the tag that Apple's players ask for
    return stream


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Errors of the system and of FFmpeg, while writing, as one line."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if error.errno in _NO_SPACE:
            raise UserError(f"no space left for {path}; free some space or choose another output folder") from error
        raise UserError(f"cannot write {path} ({error.strerror}); choose another path, container or codec") from error


def _check_target(path: Path, source: VideoInfo | None, overwrite: bool) -> None:
    if source is not None and path.exists() and path.resolve() == source.path.resolve():
        raise UserError(f"{path} is the input; choose another output")
    if not path.exists():
        place = next(parent for parent in path.absolute().parents if parent.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"cannot write {path} ({place} is no folder that you may write in); choose another output")
        return
    if not path.is_dir():
        if not overwrite:
            raise UserError(f"{path} exists already; pass --overwrite or choose another output")
        return
    contents = list(path.iterdir())
    if contents and not overwrite:
        raise UserError(f"the folder {path} is not empty; pass --overwrite or choose another output")
    stranger = next((p for p in contents if p.suffix.lower() not in IMAGE_SUFFIXES), None)
    if stranger is not None:
        raise UserError(f"the folder {path} holds {stranger.name}, not only frames; choose another output")
