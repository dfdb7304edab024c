"""One pass over a clip before the work: how many frames there really are, and where shots begin."""

from __future__ import annotations

from collections.abc import Callable

from ldm_video.pipeline.journal import Survey
from ldm_video.video_io import FrameReader, MaskSource, VideoInfo

_REPORT_EVERY = 50  # frames


def take_survey(info: VideoInfo, mask: MaskSource, progress: Callable[[float], None]) -> Survey:
    """Decode the clip once, and a moving mask; a container's own count is not to be trusted.

    Raises ``UserError`` when mask and clip differ in length.
    """
    if info.kind == "image":
        return Survey(1)
    warnings: list[str] = []
    frames = info.frames or 0
    if info.kind == "video":

        def count(index: int) -> bool:
            if index % _REPORT_EVERY == 0:
                progress(index)
            return False

        with FrameReader(info.path, deinterlace="off", wanted=count) as reader:
            for _ in reader:
                pass
        frames, warnings = reader.decoded, reader.warnings
    mask.finish(frames)
    return Survey(frames, (), tuple(warnings))
