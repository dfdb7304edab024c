"""Options for how clips are cut out of their sources."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError

_MAX_DETAIL_POWER = 10.0  # largest |detail_power|: beyond it, probabilities are all or nothing


@dataclass(frozen=True)
class Sampling:
    """How a clip is cut out of a source.

    Attributes:
        max_stride: largest temporal stride; the stride is drawn from 1 to this.
        photo_share: fraction of clips that are filmed photographs, if there are both photos and videos.
        max_shrink: videos are downscaled by a factor from 1 to this before cropping, for content at several scales.
        candidates: number of random crops to choose from; the most detailed one is taken with probability
            ``prefer_detail``, else the first.
        prefer_detail: see ``candidates``.
        max_frames: number of frames of a file to decode into the cache, from its start; 0 is all. Long films should
            be split into shots first with :mod:`data.prepare`. Shards are not cached and have no such limit.
        average: low-res frames are averaged along the motion with 0 to this many neighbours on each side, as at
            inference with a model whose ``sampling.average`` is set.
        around: number of extra frames to degrade before and after the clip, in total, and then drop. The first frame
            of an encoded stream is the clearest, but hardly any frame of a recording is the first; and a frame's
            compression depends on later frames too.
        drawing_share: fraction of the filmed photographs with lines, letters and shapes drawn over them, see
            :mod:`data.drawings`.
        detail_power: a source is drawn in proportion to its number of pixels times its detail (the mean squared
            gradient of its first frame) to this power, because soft footage is plentiful and teaches little.

    Raises ``UserError`` for a value of the wrong type or out of range.
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
        number("detail_power", self.detail_power, -_MAX_DETAIL_POWER, _MAX_DETAIL_POWER)


def sampling_of(options: dict[str, Any]) -> Sampling:
    """Build a :class:`Sampling` from options by name; raises ``UserError`` for an unknown one."""
    if unknown := sorted(options.keys() - {field.name for field in fields(Sampling)}):
        raise UserError(f"unknown data option {unknown[0]!r}; see data.clips.ClipDataset and data.sampling.Sampling")
    return Sampling(**options)
