"""Survey a clip in one pass before the work: how many frames decode, and where shots begin."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

from ldm_video.pipeline.cuts import CutDetector
from ldm_video.pipeline.journal import Survey
from ldm_video.video_io import FrameReader, MaskSource, VideoInfo
from ldm_video.video_io.container import begins_whole

_REPORT_EVERY = 50  # frames


def take_survey(info: VideoInfo, mask: MaskSource, progress: Callable[[float], None], find_cuts: bool = True) -> Survey:
    """Decode the clip and a moving mask once, since a container's own frame count is not reliable.

    What the mask hides cannot begin a shot. Raises ``UserError`` if mask and clip differ in length, and if the mask has
    frames that the clip has lost elsewhere than at its end.
    """
    frames, cuts, warnings, cut_short = info.frames or 0, list[int](), list[str](), True
    if info.kind == "video" or find_cuts:

        def look(index: int) -> bool:
            if index % _REPORT_EVERY == 0:
                progress(index)
            return find_cuts

        with FrameReader(info.path, deinterlace="off", wanted=look) as reader:
            detector = CutDetector()
            # A mask that is too short is reported once the clip's length is known.
            found = [
                detector.push(frame.pixels, mask.at(frame.index) if mask.has(frame.index) else None) for frame in reader
            ]
            cuts = [cut for cut in (*found, detector.finish()) if cut is not None]
        frames, warnings = reader.decoded, reader.warnings
        cut_short = frames == info.frames or (reader.in_step and begins_whole(info.path))
    mask.finish(frames, cut_short)
    return Survey(frames, tuple(cuts), tuple(warnings))


def count_frames(info: VideoInfo) -> int | None:
    """Return how many frames decode, cached per version of the file; for stills, the number of files."""
    if info.kind != "video":
        return info.frames
    facts = info.path.stat()
    return _decoded(info.path, facts.st_size, facts.st_mtime_ns)


@lru_cache
def _decoded(path: Path, size: int, changed: int) -> int:
    with FrameReader(path, deinterlace="off", wanted=lambda index: False) as reader:
        list(reader)
    return reader.decoded
