"""Write pieces of a source as small H.264 files ``KEY.mp4``, each with ``KEY.json`` and an optional ``KEY.txt``."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Self

import av
from av.video.reformatter import ColorPrimaries, ColorRange, Colorspace, ColorTrc
from torch import Tensor

from data.cache import read_caption
from data.prepare_parts.options import PrepareOptions
from data.prepare_parts.pieces import Piece
from ldm_video.core.files import atomic_path
from ldm_video.video_io import FrameReader
from ldm_video.video_io.container import file_url
from ldm_video.video_io.convert import ToVideoFrame
from ldm_video.video_io.encoders import find_encoder

_PRESET = "fast"
_MAX_STEM = 60


class ClipWriter(AbstractContextManager["ClipWriter"]):
    """Write H.264 with a short GOP and fast-decoding settings, for random access.

    BT.709, limited range, constant frame rate; single-threaded, so that the bytes are the same everywhere.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: Fraction, options: PrepareOptions) -> None:
        arguments = find_encoder("libx264").arguments(options.crf, _PRESET)
        arguments |= {"tune": "fastdecode", "g": str(options.gop), "bf": "0"}
        self._container = av.open(file_url(path), "w", format="mp4", options={"movflags": "+faststart"})
        self._stream = self._container.add_stream("libx264", rate=rate, options=arguments)
        self._stream.height, self._stream.width, self._stream.pix_fmt = *size, "yuv420p"
        context = self._stream.codec_context
        context.thread_count = 1
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries, context.color_trc = ColorPrimaries.BT709, ColorTrc.BT709
        self._to_frame = ToVideoFrame(size, "yuv420p")
        self._count, self._tick = 0, 1 / rate

    def write(self, pixels: Tensor) -> None:
        """Append a frame ``c h w`` float RGB in [-1, 1]."""
        frame = self._to_frame(pixels)
        frame.pts, frame.time_base = self._count, self._tick
        self._count += 1
        self._encode(frame)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._encode(None)
        finally:
            self._container.close()

    def _encode(self, frame: av.VideoFrame | None) -> None:
        try:
            self._container.mux(self._stream.encode(frame))
        except av.FFmpegError as error:  # `atomic_path` turns OS errors into clear messages
            raise OSError(error.errno, error.strerror) from error


def clip_key(name: str, number: int) -> str:
    """Return a clip name without dots (WebDataset keys end at the first dot) that is unique across sources.

    Args:
        name: the source's path relative to the folder of sources.
        number: index of the piece.
    """
    stem = re.sub(r"[^0-9A-Za-z_-]+", "_", Path(name).with_suffix("").as_posix())[-_MAX_STEM:]
    return f"{stem}-{hashlib.sha256(name.encode()).hexdigest()[:6]}-{number:04d}"


def write_pieces(
    path: Path, name: str, pieces: Sequence[Piece], rate: Fraction, out: Path, options: PrepareOptions
) -> list[dict[str, object]]:
    """Write the kept pieces of a source into the folder ``out`` in one pass; each file is written atomically.

    Returns the metadata of each clip, as in its ``KEY.json``. Raises ``UserError`` when the disk is full.
    """
    kept, caption = [piece for piece in pieces if not piece.reason], read_caption(path)
    facts = []
    if not kept:
        return []
    with FrameReader(path, start=kept[0].start, stop=kept[-1].stop) as reader:
        for number, piece in enumerate(kept):
            key = clip_key(name, number)
            with ExitStack() as stack:
                temporary = stack.enter_context(atomic_path(out / f"{key}.mp4"))
                size = (piece.height, piece.width)
                writer = stack.enter_context(ClipWriter(temporary, size, rate, options))
                for frame in reader:
                    if frame.index >= piece.start:
                        rows = slice(piece.top, piece.top + piece.height)
                        writer.write(frame.pixels[:, rows, piece.left : piece.left + piece.width])
                    if frame.index == piece.stop - 1:
                        break
            fact: dict[str, object] = {
                "key": key, "source": name, "start": piece.start, "stop": piece.stop, "rate": str(rate),
                "top": piece.top, "left": piece.left, "height": piece.height, "width": piece.width,
                "cropped": piece.height < reader.info.height - 1 or piece.width < reader.info.width - 1,
            }  # fmt: skip
            _write_text(out / f"{key}.json", json.dumps(fact, indent=1))
            if caption:
                _write_text(out / f"{key}.txt", caption)
            facts.append(fact)
    return facts


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
