"""Random access to a small encoded video in memory; only the requested frames are decoded."""

from __future__ import annotations

import io
from fractions import Fraction
from types import TracebackType
from typing import Self

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from einops import rearrange

from ldm_video.core.errors import UserError
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io.container import Damage, decoded_frames
from ldm_video.video_io.convert import bit_depth, colour_of, to_pixels
from ldm_video.video_io.orientation import Orientation, orientation_of
from ldm_video.video_io.probe import square_width
from ldm_video.video_io.subsample import LeftChroma, is_left_untagged

_MATRICES = {"bt601": Colorspace.ITU601, "bt709": Colorspace.ITU709}
_QUALITY = (
    Interpolation.BICUBIC | Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP | Interpolation.ACCURATE_RND
)


class EncodedVideo:
    """``with EncodedVideo(data, name) as video: video[4:13:2]``: frames ``t h w c`` uint8 RGB, upright, square pixels.

    A slice is decoded from the preceding key frame, so short GOPs pay off (:mod:`data.prepare` writes them); if that
    does not yield every frame, it is decoded from the start. ``len(video)`` is read from the packets without decoding.

    Raises ``UserError``, with a message that starts with ``name``, for data that is not a video, has no frame, is
    damaged or interlaced, or changes its size or format.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self.name, self._data = name, data
        self._open()
        try:
            self._times = sorted(self._packet_times())
            if not self._times:
                raise UserError(f"{name} has no frame")
        except BaseException:
            self._container.close()
            raise

    def __len__(self) -> int:
        return len(self._times)

    def __getitem__(self, frames: slice) -> np.ndarray:
        times = self._times[frames]
        found = self._decode(times, seek=True)
        if len(found) < len(set(times)):
            # In an open GOP, frames after the key frame may precede it in display order and depend on earlier frames;
            # and some formats cannot seek to a key frame (transport and program streams). Decode from the start.
            self._container.close()
            self._open()
            found = self._decode(times, seek=False)
        if lost := len(set(times)) - len(found):
            raise UserError(f"{self.name} is damaged: {lost} of {len(set(times))} frames are lost")
        if any(frame.interlaced_frame for frame in found.values()):
            raise UserError(f"{self.name} is interlaced; run data.prepare over the sources")
        shown = [found[time] for time in times]
        if len({(frame.width, frame.height, frame.format.name) for frame in shown}) > 1:
            raise UserError(f"{self.name} changes its size or format midway; run data.prepare over the sources")
        width = square_width(shown[0].width, self._stream.sample_aspect_ratio or Fraction(1))
        placed = LeftChroma() if self._left_untagged(shown[0]) else None
        return np.stack([_rgb(frame, width, placed) for frame in shown])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._container.close()

    def _open(self) -> None:
        try:
            # Allow no protocol: a file that poses as a playlist must not make FFmpeg open other files.
            self._container = av.open(io.BytesIO(self._data), "r", options={"protocol_whitelist": "data"})
        except (av.FFmpegError, UnicodeError) as error:
            raise UserError(f"{self.name} is not a video that can be read ({error})") from error
        stream = self._container.streams.best("video")
        if stream is None or stream.codec_context is None:
            self._container.close()
            raise UserError(f"{self.name} holds no video stream that can be decoded")
        self._stream = stream
        self._stream.codec_context.thread_count = 1  # the data workers already run in parallel

    def _decode(self, times: list[int], seek: bool) -> dict[int, av.VideoFrame]:
        """Return the frames at ``times`` found when decoding from the preceding key frame (``seek``) or the start."""
        wanted, found = set(times), dict[int, av.VideoFrame]()
        try:
            if seek:
                self._container.seek(times[0], stream=self._stream)
            for frame in decoded_frames(self._container, self._stream, Damage()):
                if frame.pts in wanted:
                    found[frame.pts] = frame
                if len(found) == len(wanted) or (frame.pts is not None and frame.pts > times[-1]):
                    break
        except av.FFmpegError as error:
            if not seek:  # otherwise the caller tries again from the start
                raise UserError(f"{self.name} cannot be decoded ({error})") from error
        return found

    def _left_untagged(self, frame: av.VideoFrame) -> bool:
        return is_left_untagged(self._stream.codec_context, frame.format, colour_of(frame).range)

    def _packet_times(self) -> list[int]:
        packets = self._container.demux(self._stream)
        try:
            return [packet.pts for packet in packets if packet.pts is not None and not packet.is_discard]
        except av.FFmpegError as error:
            raise UserError(f"{self.name} cannot be read to its end ({error})") from error


def _rgb(frame: av.VideoFrame, width: int, placed: LeftChroma | None) -> np.ndarray:
    """Convert a frame to ``h w c`` uint8. Common formats skip the detour via 16 bits and floats: five times as fast."""
    colour, upright = colour_of(frame), orientation_of(frame)
    frame = placed(frame) if placed else frame
    plain = colour.range == "limited" and colour.matrix in _MATRICES and bit_depth(frame) == 8
    if not plain or width != frame.width or upright != Orientation():
        pixels = upright.apply(to_pixels(frame, colour, width, frame.height))
        return rearrange(to_bytes(pixels), "c h w -> h w c").numpy()
    rgb = frame.reformat(
        format="rgb24",
        src_colorspace=_MATRICES[colour.matrix],
        src_color_range=ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        interpolation=_QUALITY,
        threads=1,
    )
    return rgb.to_ndarray()
