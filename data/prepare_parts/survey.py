"""One pass over a source: every frame downscaled, every eighth at full size. :mod:`pieces` decides on the result."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from einops import rearrange

from data.prepare_parts.cuts import ContentScore, find_cuts
from ldm_video.core.errors import UserError
from ldm_video.core.tensors import to_bytes
from ldm_video.video_io import DEFAULT_RATE, VideoInfo, probe
from ldm_video.video_io.container import Damage, decoded_frames, open_video
from ldm_video.video_io.convert import to_pixels
from ldm_video.video_io.probe import square_width

FULL_STEP = 8  # distance between frames that are examined at full size
_SMALL_WIDTH = 256
_BAR_LEVEL = 36  # of 255; compression noise in a black bar stays below this
_FLAT_POWER = 0.5  # levels²; power below this is rounding error

Bars = tuple[int, int, int, int]  # top, bottom, left, right in pixels


@dataclass
class Survey:
    """The statistics of a source of ``len(luma)`` frames.

    Attributes:
        size: (height, width), upright and with square pixels.
        rate: frames per second.
        cuts: first frames of the shots, without frame 0.
        luma: 99th percentile of brightness of each frame; levels of 255.
        motion: mean absolute difference of each frame from the previous one; levels of 255, 0 for the first.
        sharpness: sharpness of every ``FULL_STEP``-th frame, see :func:`sharpness`.
        bars: black bars of the same frames, see :func:`bars`.
        damage: number of packets that could not be decoded.
    """

    size: tuple[int, int]
    rate: Fraction
    cuts: list[int] = field(default_factory=list)
    luma: list[float] = field(default_factory=list)
    motion: list[float] = field(default_factory=list)
    sharpness: list[float] = field(default_factory=list)
    bars: list[Bars] = field(default_factory=list)
    damage: int = 0


def survey(path: Path, cut: float) -> Survey:
    """Decode a source once and return its statistics; ``cut`` is the threshold of :func:`find_cuts`.

    Raises ``UserError`` when it is not a decodable video or has no frame.
    """
    info, damage = probe(path), Damage()
    seen = Survey(info.size, info.rate or DEFAULT_RATE)
    content, scores = ContentScore(), list[float]()
    height = max(2, round(_SMALL_WIDTH * info.coded_height / info.coded_width))
    before: np.ndarray | None = None
    try:
        with open_video(path) as (container, stream):
            for index, frame in enumerate(decoded_frames(container, stream, damage)):
                small = frame.reformat(width=_SMALL_WIDTH, height=height, format="bgr24").to_ndarray()
                scores.append(content.of(index, small))
                grey = cv2.cvtColor(small, cv2.COLOR_BGR2GRAY)
                seen.luma.append(float(np.percentile(grey, 99)))
                seen.motion.append(0.0 if before is None else float(cv2.absdiff(grey, before).mean()))
                before = grey
                if index % FULL_STEP == 0:
                    full = _full(frame, info)
                    seen.sharpness.append(sharpness(full))
                    seen.bars.append(bars(full))
    except av.FFmpegError as error:
        raise UserError(f"{path} cannot be decoded ({error}); convert it or leave it out") from error
    # Keep all cuts, those of short shots too: a cut left out would lie inside a piece.
    seen.cuts, seen.damage = find_cuts(scores, cut), damage.errors
    return seen


def sharpness(grey: np.ndarray) -> float:
    """Return the power of the finest octave of ``h w`` uint8, divided by that of the octave two below.

    Natural images have about the same power in each octave (amplitude falls as 1/f: Field 1987): 19 of 20 clips have
    0.27 or more, and 0.09 or less after a Gaussian blur of 2 pixels and compression. The octave directly below would
    not do: in a blurred picture it is empty too, which would leave only compression noise to compare.
    """
    picture = grey.astype(np.float32)
    fine, coarse, coarser = (cv2.GaussianBlur(picture, (0, 0), sigma) for sigma in (1.0, 2.0, 4.0))
    return float(np.square(picture - fine).mean() / (np.square(coarse - coarser).mean() + _FLAT_POWER))


def bars(grey: np.ndarray) -> Bars:
    """Return the widths of the black bars around ``h w`` uint8: rows and columns that are black but for 2 % of pixels.

    An entirely black picture has none.
    """
    rows, columns = (np.percentile(grey, 98, axis=axis) > _BAR_LEVEL for axis in (1, 0))
    if not rows.any() or not columns.any():
        return 0, 0, 0, 0  # all black: there is no picture for bars to surround
    return tuple(int(n) for line in (rows, columns) for n in (line.argmax(), line[::-1].argmax()))  # type: ignore[return-value]


def _full(frame: av.VideoFrame, info: VideoInfo) -> np.ndarray:
    """Convert a frame to ``h w`` uint8 grey as the reader would show it: upright, square pixels."""
    width = square_width(info.coded_width, info.sample_aspect_ratio)
    pixels = info.orientation.apply(to_pixels(frame, info.colour, width, info.coded_height))
    return cv2.cvtColor(rearrange(to_bytes(pixels), "c h w -> h w c").numpy(), cv2.COLOR_RGB2GRAY)
