"""What can be set about how clips are cut out of their sources."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError

_STEEPEST = 10.0  # power of the detail: beyond it shares are all or nothing


@dataclass(frozen=True)
class Sampling:
    """How a clip is cut out of a source.

    Attributes:
        max_stride: every 1st to ``max_stride``-th frame is taken.
        photo_share: share of the clips that are filmed photographs, where there are both photos and videos.
        max_shrink: content is shrunk by 1 to this factor before the crop, so that it is seen at several scales.
        candidates: crops that are drawn; the most detailed one is taken with probability ``prefer_detail``.
        max_frames: of a file that are decoded into the cache, from its start; 0 is all. Long films are better
            split into shots first, by :mod:`data.prepare`. Shards are not cached and have no such limit.
        average: low-res frames are averaged along the motion with 0 to this many neighbours on each side, as they will
            be when a model is used whose ``sampling.average`` is set.
        around: this many frames are degraded with those of the clip, some before and the others after them, and
            dropped. The first frame that a codec writes is the clearest, and of a recording hardly any frame is the
            first; what a codec makes of a frame depends on later ones as well.
        drawing_share: share of the filmed photographs with lines, letters and shapes drawn over them, see
            :mod:`data.drawings`.
        detail_power: a source is drawn in proportion to its pixels, times its detail (the mean squared gradient of its
            first frame) to this power: there is more footage of soft pictures than there is to be learned from them.

    Raises ``UserError`` for a value of the wrong type or out of its range.
    """

    max_stride: int = 2
    photo_share: float = 0.25
    max_shrink: float = 1.5
    candidates: int = 3
    prefer_detail: float = 0.7
    max_frames: int = 64
    average: int = 0
    around: int = 0
    drawing_share: float = 0.0
    detail_power: float = 0.0

    def __post_init__(self) -> None:
        for name, least in (("max_stride", 1), ("candidates", 1), ("max_frames", 0), ("average", 0), ("around", 0)):
            whole(name, getattr(self, name), least)
        for name in ("photo_share", "prefer_detail", "drawing_share"):
            number(name, getattr(self, name), 0, 1)
        number("max_shrink", self.max_shrink, 1, float("inf"))
        number("detail_power", self.detail_power, -_STEEPEST, _STEEPEST)


def sampling_of(options: dict[str, Any]) -> Sampling:
    """:class:`Sampling` of options by name; ``UserError`` for one that it does not have."""
    if unknown := sorted(options.keys() - {field.name for field in fields(Sampling)}):
        raise UserError(f"unknown data option {unknown[0]!r}; see data.clips.ClipDataset and data.sampling.Sampling")
    return Sampling(**options)
