"""One pass over a clip before the work: how many frames there really are, and where shots begin."""

from __future__ import annotations

from collections.abc import Callable

from ldm_video.pipeline.cuts import CutDetector
from ldm_video.pipeline.journal import Survey
from ldm_video.video_io import FrameReader, MaskSource, VideoInfo

_REPORT_EVERY = 50  # frames


def take_survey(info: VideoInfo, mask: MaskSource, progress: Callable[[float], None], find_cuts: bool = True) -> Survey:
    """Decode the clip once, and a moving mask; a container's own count is not to be trusted.

    Raises ``UserError`` when mask and clip differ in length.
    """
    frames, cuts, warnings = info.frames or 0, list[int](), list[str]()
    if info.kind == "video" or find_cuts:

        def look(index: int) -> bool:
            if index % _REPORT_EVERY == 0:
                progress(index)
            return find_cuts

        with FrameReader(info.path, deinterlace="off", wanted=look) as reader:
            detector = CutDetector()
            found = [detector.push(frame.pixels) for frame in reader]
            cuts = [cut for cut in (*found, detector.finish()) if cut is not None]
        frames, warnings = reader.decoded, reader.warnings
    mask.finish(frames)
    return Survey(frames, tuple(cuts), tuple(warnings))
