"""Write HD video: BT.709 limited range, the source's time stamps, audio and subtitles; or PNG files. Atomic."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

import av
import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.files import DISK_FULL, atomic_path, check_free
from ldm_video.video_io.encoders import check_size, find_encoder
from ldm_video.video_io.probe import VideoInfo
from ldm_video.video_io.remux import StreamCopier
from ldm_video.video_io.sinks import (
    FolderSink,
    PacketSink,
    Sink,
    StillSink,
    VideoSink,
    add_video,
    open_output,
    time_base,
)
from ldm_video.video_io.stills import IMAGE_SUFFIXES, is_image


class _Writer(ABC):
    """Writes frames to a sink; the file or folder ``path`` appears only after a clean exit.

    ``overwrite``: replace what is there then.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, overwrite: bool = True) -> None:
        self.path, self.size, self.rate, self.overwrite = path, size, rate, overwrite
        self.frames = 0
        self._last: Fraction | None = None
        self._session: AbstractContextManager[Sink] | None = None
        self._sink: Sink | None = None

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
        """Append one frame: ``c h w`` float RGB in [-1, 1], shown at ``pts_seconds`` (default: index / rate).

        Raises ``ValueError`` for a wrong shape or time, ``UserError`` for pixels that are not finite or a failed write.
        """
        assert self._sink is not None, "write inside `with`"
        if tuple(pixels.shape) != (3, *self.size):
            raise ValueError(f"frame of shape {tuple(pixels.shape)}, expected {(3, *self.size)}")
        if not torch.isfinite(pixels).all():
            raise UserError(
                f"frame {self.frames} has pixels that are not numbers; use a wider data type (bfloat16 or float32)"
            )
        pts = self.frames / self.rate if pts_seconds is None else pts_seconds
        if self._last is not None and pts <= self._last:
            raise ValueError(f"time stamps must increase: {pts} after {self._last}")
        with _as_user_errors(self.path):
            self._sink.write(pixels, pts)
        self._last = pts
        self.frames += 1

    @contextmanager
    def _open(self) -> Iterator[Sink]:
        with atomic_path(self.path, self.overwrite) as temporary:
            with _as_user_errors(self.path):
                sink = self._make_sink(temporary)
            try:
                yield sink
                if not self.frames:
                    raise UserError(f"no frame to write to {self.path}; the input holds none")
                with _as_user_errors(self.path):
                    sink.finish()
            finally:
                sink.close()

    @abstractmethod
    def _make_sink(self, temporary: Path) -> Sink: ...


class VideoWriter(_Writer):
    """``with VideoWriter(path, size, source, rate) as writer: writer.write(pixels, pts_seconds)``.

    ``path``: a video file by its suffix (.mp4, .mkv, .mov, ...), a folder (no suffix, or an existing folder) for
    numbered PNG files, or one .png/.jpg/... image. The file appears under its name only after a clean exit.
    ``size``: (height, width), written exactly: a size that 4:2:0 cannot hold is refused, never padded.
    ``source``: provides audio, subtitles and the time base. MP4 and MOV keep time stamps exactly; Matroska rounds to
    milliseconds. ``warnings`` names each stream that could not be copied.
    Raises ``UserError``: the path exists (also at the end); cannot be written, no space left, unknown codec,
    unsupported size. With ``overwrite``, existing outputs are replaced.
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
        super().__init__(Path(path), size, Fraction(rate), overwrite)
        self.warnings: list[str] = []
        self._source = source
        self._encoder = find_encoder(codec)
        self._arguments = self._encoder.arguments(crf, preset)
        self._to_folder = self.path.is_dir() or not self.path.suffix
        if not self._to_folder and not is_image(self.path):
            check_size(self._encoder, size, None if source is None else source.size)
        _check_target(self.path, source, overwrite)
        if self._to_folder and self.path.is_file():
            raise UserError(
                f"{self.path} is a file, and frames need a folder; give a suffix such as .mp4, or another name"
            )

    def rehearse(self, elsewhere: bool = False) -> None:
        """Open the output and discard it, so that a bad path or container fails before the work.

        ``elsewhere``: in a temporary folder, so that nothing is created beside the output.
        """
        if elsewhere:
            with TemporaryDirectory() as folder, _as_user_errors(self.path):
                self._make_sink(Path(folder) / f"output{self.path.suffix}").close()
            return
        with suppress(_Rehearsed), atomic_path(self.path) as temporary:
            with _as_user_errors(self.path):
                self._make_sink(temporary).close()
            raise _Rehearsed
        self.warnings.clear()

    def check_free(self) -> None:
        """Raise ``Taken`` if the path has been taken and must not be replaced, before another output appears."""
        if not self.overwrite:
            check_free(self.path)

    def part(self, path: Path) -> PartWriter:
        """Return a writer for some of this output's frames, encoded separately; :meth:`join` joins the parts.

        It writes a folder for frames, a file for a video.
        """
        return PartWriter(self, path)

    def join(self, parts: Sequence[Path]) -> None:
        """Append parts, in the clip's order, without re-encoding them."""
        assert self._sink is not None, "join inside `with VideoWriter(...)`"
        with _as_user_errors(self.path):
            self.frames += self._sink.join(parts)

    def _make_sink(self, temporary: Path) -> Sink:
        if self._to_folder:
            return FolderSink(temporary)
        if is_image(self.path):
            return StillSink(temporary, self.path)
        output, stream = self._add_video(temporary)
        return VideoSink(output, stream, StreamCopier(self._source, output, self.path, self.warnings))

    def _make_part(self, temporary: Path) -> Sink:
        if self._to_folder:
            return FolderSink(temporary)
        return PacketSink(temporary, *self._add_video(temporary.with_suffix(self.path.suffix)))

    def _add_video(self, temporary: Path) -> tuple[av.container.OutputContainer, av.VideoStream]:
        output = open_output(temporary, self.path)
        stream = add_video(output, self.path, self._encoder, self._arguments, self.size, self.rate)
        stream.codec_context.time_base = time_base(self._source, self.rate, output.format.name)
        return output, stream


class _Rehearsed(Exception):
    """The output could be opened; it must not appear yet."""


class PartWriter(_Writer):
    """Some frames of a :class:`VideoWriter`'s output, see :meth:`VideoWriter.part`."""

    def __init__(self, whole: VideoWriter, path: Path) -> None:
        super().__init__(path, whole.size, whole.rate)
        self._whole = whole

    def _make_sink(self, temporary: Path) -> Sink:
        return self._whole._make_part(temporary)


@contextmanager
def _as_user_errors(path: Path) -> Iterator[None]:
    """Turn errors of the system and of FFmpeg, while writing, into a ``UserError`` of one line."""
    try:
        yield
    except (av.FFmpegError, OSError) as error:
        if error.errno in DISK_FULL:
            raise UserError(f"no space left for {path}; free some space or choose another output folder") from error
        raise UserError(f"cannot write {path} ({error.strerror}); choose another path, container or codec") from error


def _check_target(path: Path, source: VideoInfo | None, overwrite: bool) -> None:
    if source is not None and path.exists() and path.resolve() == source.path.resolve():
        raise UserError(f"{path} is the input; choose another output")
    if not path.exists():
        place = next(parent for parent in path.absolute().parents if parent.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise UserError(f"cannot write {path} ({place} is not a writable folder); choose another output")
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
