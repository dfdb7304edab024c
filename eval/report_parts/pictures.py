"""Read the frames that the page shows: crops, whole frames, scan lines over time. Holds those and one more frame."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from eval import columns
from eval.clips import frames_of
from eval.report_parts import choose
from eval.report_parts.load import INPUT, REFERENCE, ScoredClip, ScoredTrack
from ldm_video.core.errors import UserError

CROP = (144, 192)  # height, width in pixels of the reference
CROPPED_FRAMES = 2  # per clip
LINE = 480  # pixels of the scan line
MOST_LINES = 240  # frames of a temporal profile, from the clip's start
WIDEST = 1280  # pixels of a whole frame in the slider; wider ones are downscaled


@dataclass(frozen=True)
class CroppedFrame:
    """One frame, cropped to the box in which the methods differ most.

    ``scores``: method -> its score on this frame, NaN if it has none; ``crops``: label -> ``h w 3`` uint8.
    """

    frame: int
    scores: dict[str, float]
    difference: float
    box: choose.Box
    crops: dict[str, np.ndarray]


@dataclass(frozen=True)
class ClipPictures:
    """All pictures of one clip. Labels: ``reference``, ``input`` if there is one, and the methods.

    Attributes:
        decided_by: the column whose scores selected the frames.
        size: (height, width) of the reference.
        cropped: the frames in which methods differ most, the largest difference first.
        whole: label -> the first of these frames, uncropped, ``h w 3`` uint8.
        line: row, left edge and width of the scan line, in pixels of the reference.
        profiles: label -> ``t width 3`` uint8, the scan line of frame t in row t.
    """

    clip: str
    decided_by: str
    size: tuple[int, int]
    cropped: list[CroppedFrame]
    whole: dict[str, np.ndarray]
    line: tuple[int, int, int]
    profiles: dict[str, np.ndarray]


def chosen_clips(track: ScoredTrack, count: int) -> list[str]:
    """Return the ``count`` clips with the largest difference between methods on any frame, in the track's order."""
    peaks = {}
    for clip in track.clips():
        spread = _differences(track.of_clip(clip))[2]
        peaks[clip] = float(np.nanmax(spread)) if np.isfinite(spread).any() else -np.inf
    kept = sorted(peaks, key=lambda clip: -peaks[clip])[:count]
    return [clip for clip in peaks if clip in kept]


def clip_pictures(clip: str, versions: Mapping[str, ScoredClip]) -> ClipPictures:
    """Read the pictures of one clip. ``versions``: method -> its clip. ``UserError`` for an unreadable file."""
    decided_by, scores, spread = _differences(versions)
    frames = choose.largest(spread, CROPPED_FRAMES, apart=max(1, len(spread) // 4)) or [0]
    first = next(iter(versions.values())).pair
    size, activity = _activity(first.ref)
    line = choose.busiest_line(activity, LINE)
    sources = {REFERENCE: first.ref} | ({} if first.lowres is None else {INPUT: first.lowres})
    sources |= {method: version.pair.pred for method, version in versions.items()}
    kept: dict[str, dict[int, np.ndarray]] = {}
    profiles: dict[str, np.ndarray] = {}
    for label, path in sources.items():
        kept[label], profiles[label] = _read(path, size, frames, line, enlarge=label == INPUT)
    cropped = []
    for frame in frames:
        box = _differing_box(frame, kept, list(versions))
        on_frame = {method: float(values[frame]) for method, values in scores.items()}
        cropped.append(CroppedFrame(frame, on_frame, float(spread[frame]), box, _cut(frame, kept, box)))
    whole = {label: _limit_width(pictures[frames[0]]) for label, pictures in kept.items()}
    return ClipPictures(clip, decided_by, size, cropped, whole, line, profiles)


def _differences(versions: Mapping[str, ScoredClip]) -> tuple[str, dict[str, np.ndarray], np.ndarray]:
    """Return the deciding column, its scores by method, and the difference between methods at each frame (``t``)."""
    column = columns.leading(version.scores for version in versions.values())
    if column is None:
        return "", {}, np.full(next(iter(versions.values())).frames, np.nan)
    scores = {method: version.scores[column] for method, version in versions.items()}
    return column, scores, choose.difference(scores, columns.describe(column).better == "higher")


def _activity(reference: Path) -> tuple[tuple[int, int], np.ndarray]:
    """Return the reference's size, and each pixel's change summed over the profile's frames (``h w``)."""
    with closing(_uint8_frames(reference)) as frames:
        before = next(frames).astype(np.float32)
        height, width, _ = before.shape
        total = np.zeros((height, width))
        for frame in islice(frames, MOST_LINES - 1):
            now = frame.astype(np.float32)
            total += np.abs(now - before).mean(axis=-1)
            before = now
    return (height, width), total


def _read(
    path: Path, size: tuple[int, int], wanted: list[int], line: tuple[int, int, int], enlarge: bool
) -> tuple[dict[int, np.ndarray], np.ndarray]:
    """Return the wanted frames and the profile ``t width 3``. ``enlarge``: resize to ``size``, pixels stay visible.

    Raises ``UserError`` for another size and for missing frames.
    """
    row, left, width = line
    pictures: dict[int, np.ndarray] = {}
    lines: list[np.ndarray] = []
    with closing(_uint8_frames(path)) as frames:
        for index, frame in enumerate(islice(frames, max(*wanted, MOST_LINES - 1) + 1)):
            if frame.shape[:2] != size and not enlarge:
                raise UserError(f"{path} has another size than its reference; score it again")
            if enlarge:
                frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT)
            if index in wanted:
                pictures[index] = frame
            if index < MOST_LINES:
                lines.append(frame[row, left : left + width].copy())  # a view would keep the whole frame
    if len(pictures) < len(set(wanted)):
        raise UserError(f"{path} has no frame {max(wanted)}, but its scores have; score it again")
    return pictures, np.stack(lines)


def _differing_box(frame: int, kept: Mapping[str, Mapping[int, np.ndarray]], methods: list[str]) -> choose.Box:
    """Return the box in which the methods differ most; a single method is compared with the reference."""
    compared = [*methods, REFERENCE] if len(methods) == 1 else methods
    return choose.most_different_box([kept[label][frame] for label in compared], CROP)


def _cut(frame: int, kept: Mapping[str, Mapping[int, np.ndarray]], box: choose.Box) -> dict[str, np.ndarray]:
    """Return crops as copies, since views would keep the whole frames in memory."""
    top, left, height, width = box
    return {label: pictures[frame][top : top + height, left : left + width].copy() for label, pictures in kept.items()}


def _limit_width(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[:2]
    if width <= WIDEST:
        return picture
    return cv2.resize(picture, (WIDEST, round(height * WIDEST / width)), interpolation=cv2.INTER_AREA)


def _uint8_frames(path: Path) -> Generator[np.ndarray]:
    """Yield frames ``h w 3`` uint8, exactly as stored."""
    for frame in frames_of(path):
        yield (frame * 255).round().astype(np.uint8)
