"""Read frames, one at a time, as the models need them: upright, progressive, square pixels, RGB in [-1, 1]."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Literal, Self

import av
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.video_io.clocks import TimedFrame, timed_frames
from ldm_video.video_io.container import Damage, alpha_decoder, decoded_frames, open_video
from ldm_video.video_io.convert import colour_of, image_to_pixels, over_black, refit, to_pixels
from ldm_video.video_io.interlace import MIN_SIDE, FieldOrder, deinterlace, detect_field_order
from ldm_video.video_io.probe import DEFAULT_RATE, VideoInfo, probe, square_width
from ldm_video.video_io.stills import list_frames, read_image, require_size
from ldm_video.video_io.subsample import LeftChroma

Deinterlace = Literal["auto", "on", "off"]
_TIME_TOLERANCE = Fraction(1, 4)  # of a frame: millisecond clocks round


@dataclass(frozen=True)
class Frame:
    """``pixels``: float32 ``c h w`` RGB in [-1, 1]; ``pts_seconds``: exact presentation time, strictly increasing."""

    index: int
    pixels: Tensor
    pts_seconds: Fraction


class FrameReader:
    """``with FrameReader(path) as reader: for frame in reader: ...``; a single pass, in constant memory.

    ``start`` and ``stop`` are frame indices (``stop`` excluded); ``Frame.index`` counts from the clip's first frame.
    Frames between them that are not ``wanted`` are decoded, so that the others' indices and times are exact, but are
    neither converted nor yielded. ``over_black``: composite over black, so that transparent pixels are black whatever
    colour they hide; else alpha is dropped.

    ``decoded``: number of frames so far, wanted or not. ``in_step``: whether each of them came when the frame rate
    says, counted from the first, as if none is missing between them. ``deinterlacing`` says what ``deinterlace="auto"``
    decided. ``warnings``, and ``damage``, those of them that report damage, are complete once the pass is over.

    Raises ``UserError``: missing path, not a video, no frame that decodes, frames of different sizes in a folder.
    """

    def __init__(
        self,
        path: str | Path,
        deinterlace: Deinterlace = "auto",
        start: int = 0,
        stop: int | None = None,
        wanted: Callable[[int], bool] = lambda index: True,
        over_black: bool = False,
    ) -> None:
        if start < 0 or (stop is not None and stop <= start):
            raise UserError(f"no frames between start {start} and stop {stop}; choose 0 <= start < stop")
        self.info: VideoInfo = probe(path)
        self.warnings: list[str] = []
        self.damage: list[str] = []
        self.decoded = 0
        self.in_step = True
        self._start, self._stop, self._wanted, self._over_black = start, stop, wanted, over_black
        self._order = self._field_order(deinterlace)
        if self.info.hdr:
            self.warnings.append(f"{path} is HDR ({self.info.hdr}); it is read as if it were SDR, colours will be dull")
        self._frames = self._read_video() if self.info.kind == "video" else self._read_stills()

    @property
    def deinterlacing(self) -> bool:
        """Whether frames go through the deinterlacer."""
        return self._order != "progressive"

    def close(self) -> None:
        """Release the file."""
        self._frames.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Frame:
        return next(self._frames)

    def _field_order(self, deinterlace: Deinterlace) -> FieldOrder:
        if deinterlace not in ("auto", "on", "off"):
            raise UserError(f"deinterlace is {deinterlace!r}; choose auto, on or off")
        too_small = min(self.info.coded_height, self.info.coded_width) < MIN_SIDE
        if deinterlace == "off" or self.info.kind != "video" or too_small:
            return "progressive"
        order = detect_field_order(self.info.path)
        return "auto" if deinterlace == "on" and order == "progressive" else order

    def _read_video(self) -> Generator[Frame, None, None]:
        info, damage = self.info, Damage()
        count, first, last = 0, Fraction(0), Fraction(0)
        with open_video(info.path) as (container, stream):
            decoder = alpha_decoder(info.path, stream) if self._over_black else None
            decoded = _uniform(decoded_frames(container, stream, damage, decoder), info, self.warnings)
            timed = timed_frames(decoded, info, self.warnings)
            if self.deinterlacing:
                timed = _deinterlaced(timed, self._order)
            width = square_width(info.coded_width, info.sample_aspect_ratio)
            placed = LeftChroma() if info.left_untagged else None
            for count, (last, frame) in enumerate(timed, start=1):
                first = last if count == 1 else first
                self.decoded = count
                late = (last - first) * (info.rate or DEFAULT_RATE) - (count - 1)  # in frames
                self.in_step &= abs(late) < _TIME_TOLERANCE
                if count > self._start and self._wanted(count - 1):
                    frame = placed(frame) if placed else frame
                    pixels = to_pixels(frame, info.colour, width, info.coded_height)
                    if self._over_black:
                        pixels = over_black(pixels, frame)
                    yield Frame(count - 1, info.orientation.apply(pixels), last)
                if count == self._stop:
                    return
        self._require_start(count)
        self._report(_damage_warnings(info, count, last - first, damage))

    def _read_stills(self) -> Generator[Frame, None, None]:
        files = list_frames(self.info.path) if self.info.kind == "frames" else [self.info.path]
        damaged: list[str] = []
        for index, file in islice(enumerate(files), self._start, self._stop):
            self.decoded = index + 1
            if not self._wanted(index):
                continue
            image = read_image(file, damaged, self._over_black)
            require_size(image, self.info.size, file, files[0])
            yield Frame(index, image_to_pixels(image), index / DEFAULT_RATE)
        self._require_start(len(files))
        if damaged:
            self._report([f"{self.info.path}: {len(damaged)} damaged pictures are patched, first {damaged[0]}"])

    def _report(self, damage: list[str]) -> None:
        self.damage += damage
        self.warnings += damage

    def _require_start(self, count: int) -> None:
        if self._start >= count:
            raise UserError(f"{self.info.path} has {count} frames; start {self._start} is past its end")


def _uniform(frames: Iterable[av.VideoFrame], info: VideoInfo, warnings: list[str]) -> Iterator[av.VideoFrame]:
    """Convert frames to the first one's size, format and colour, which may change midway in broadcast recordings."""
    wanted: str | None = None
    warned = False
    for frame in frames:
        wanted = wanted or frame.format.name
        shape, colour = (frame.width, frame.height, frame.format.name), colour_of(frame)
        if shape != (info.coded_width, info.coded_height, wanted) or not colour.is_like(info.colour):
            if not warned:
                warnings.append(f"{info.path}: the picture format changes midway; later frames are fitted to the first")
            warned = True
            frame = refit(frame, info.colour, info.coded_width, info.coded_height, wanted)
        yield frame


def _deinterlaced(timed: Iterable[TimedFrame], order: FieldOrder) -> Iterator[TimedFrame]:
    """Deinterlace. bwdif yields one frame per input frame, in order, one frame late: times wait in a queue."""
    times: deque[Fraction] = deque()

    def note_times() -> Iterator[av.VideoFrame]:
        for number, (pts, frame) in enumerate(timed):
            times.append(pts)
            frame.pts = number  # bwdif needs regular time stamps; the true ones are in the queue
            yield frame

    for frame in deinterlace(note_times(), order):
        yield times.popleft(), frame


def _damage_warnings(info: VideoInfo, count: int, span: Fraction, damage: Damage) -> list[str]:
    """Report the number of frames if the container promised more or packets were bad, and of concealed frames.

    ``span``: seconds from the first to the last frame. Fewer frames than announced that still fill the duration are not
    a loss: an edit list trims the file, as phones do.
    """
    step = 1 / (info.rate or DEFAULT_RATE)
    missing = Fraction(0) if info.duration is None else info.duration - span - step  # seconds
    if info.frames is not None and count < info.frames and (damage.errors or missing > step / 2):
        fault = f"of the {info.frames} frames that the file announces; it is truncated or damaged"
    elif damage.errors:
        fault = f"frames; {damage.errors} damaged packets were skipped"
    elif info.frames is None and missing > max(Fraction(1, 2), 2 * step):
        fault = f"frames, which end {float(missing):.2f} s before the file's end; it is probably truncated"
    elif damage.concealed:
        fault = "frames"
    else:
        return []
    patched = f"; {min(count, damage.concealed)} of them are damaged and patched" if damage.concealed else ""
    return [f"{info.path}: decoded {count} {fault}{patched}"]
