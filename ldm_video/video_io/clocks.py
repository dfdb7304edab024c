"""Presentation times from clocks that begin anywhere, run backwards, jump or do not exist."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from itertools import chain, pairwise

import av

from ldm_video.video_io.probe import DEFAULT_RATE, MAX_RATE, VideoInfo

TimedFrame = tuple[Fraction, av.VideoFrame]
_Clock = Callable[[av.VideoFrame], Fraction | None]

# Seconds. The clock of concatenated broadcast recordings restarts, and FFmpeg's own tool joins them at the same limit;
# elsewhere only damage makes a clock jump so far, and MP4 could not hold it.
_LONGEST_BROADCAST_GAP = Fraction(10)
_LONGEST_GAP = Fraction(6 * 3600)
_SHORTEST = Fraction(1, MAX_RATE)


class JoinedClock:
    """Maps seconds to seconds: after a jump, in either direction, time continues from where it was."""

    def __init__(self, info: VideoInfo) -> None:
        self._limit = _LONGEST_BROADCAST_GAP if info.clock_jumps else _LONGEST_GAP
        self._last: Fraction | None = None
        self._shift = Fraction(0)

    def __call__(self, seconds: Fraction, step: Fraction) -> Fraction:
        """Return the joined time. ``step``: seconds from one frame or packet to the next, assumed across a jump."""
        if self._last is not None and abs(seconds - self._last) > self._limit:
            self._shift += seconds - self._last - step
        self._last = seconds
        return seconds - self._shift

    def beside(self, seconds: Fraction) -> Fraction:
        """Return the time of something rare, such as a subtitle, whose own gaps mean nothing; changes no state.

        A time farther from this clock than the jump limit belongs to a jump that is about to come.
        """
        if self._last is None:
            return seconds
        return (seconds if abs(seconds - self._last) <= self._limit else self._last) - self._shift


def timed_frames(frames: Iterable[av.VideoFrame], info: VideoInfo, warnings: list[str]) -> Iterator[TimedFrame]:
    """Yield exact seconds and frame; missing or out-of-order time stamps are replaced by the frame rate's."""
    step = 1 / (info.rate or DEFAULT_RATE)
    clock = _storage_clock() if info.container == "avi" else _presentation_clock(info, step)
    last: Fraction | None = None
    mended = 0
    stamped = ((clock(frame), frame) for frame in frames)
    for (pts, frame), (after, _) in pairwise(chain(stamped, [(None, None)])):
        if pts is None or not _in_order(last, pts, after):
            mended += pts is not None
            pts = _between(last, after, step)
        last = pts
        yield pts, frame
    if mended:
        warnings.append(f"{info.path}: {mended} frames had time stamps out of order; they follow the frame rate")


def _in_order(last: Fraction | None, pts: Fraction, after: Fraction | None) -> bool:
    """Return whether ``pts`` follows ``last`` at a plausible rate, and is not alone in being later than ``after``."""
    if last is None:
        return after is None or pts <= after
    return pts - last >= _SHORTEST and (after is None or pts <= after or after <= last)


def _between(last: Fraction | None, after: Fraction | None, step: Fraction) -> Fraction:
    """Return a time after ``last`` and, if there is room, half-way to ``after``: the rate may be damaged too."""
    if last is None:
        return Fraction(0) if after is None else max(Fraction(0), after - step)
    if after is None or after - last < 2 * _SHORTEST:
        return last + step
    return (last + after) / 2


def _presentation_clock(info: VideoInfo, step: Fraction) -> _Clock:
    joined = JoinedClock(info)

    def seconds(frame: av.VideoFrame) -> Fraction | None:
        if frame.pts is None or not frame.time_base:
            return None
        return joined(frame.pts * frame.time_base - info.time_origin, step)

    return seconds


def _storage_clock() -> _Clock:
    """Count storage slots: AVI holds no presentation times, and FFmpeg's guesses run backwards with B-frames.

    A slot is a frame period; slots without a picture (dropped frames) are counted too, which keeps the audio in sync.
    """
    first: int | None = None

    def seconds(frame: av.VideoFrame) -> Fraction | None:
        nonlocal first
        if frame.dts is None or not frame.time_base:
            return None
        first = frame.dts if first is None else first
        return (frame.dts - first) * frame.time_base

    return seconds
