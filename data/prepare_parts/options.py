"""What can be set: ``key=value`` on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from data.sampling import Sampling
from ldm_video.core.checks import number, whole
from ldm_video.core.errors import UserError


@dataclass(frozen=True)
class PrepareOptions:
    """Attributes:
    min_frames: a shorter piece is dropped.
    max_frames: a longer shot is cut into equal pieces.
    min_side: a piece with a shorter side, its bars cropped off, is dropped.
    cut: how many times a frame's change exceeds that of its neighbours at a cut (PySceneDetect, adaptive).
    static: a piece that changes less from frame to frame is dropped; mean of |difference|, in levels of 255.
    black: a frame whose brightest percent of pixels is darker is black, and belongs to no piece; in levels of 255.
    blurred: a piece with less power in the finest octave, relative to two octaves below, is dropped.
    crf: of x264; 12 is near lossless.
    gop: frames from a key frame to the next; few make random access fast.
    shard_clips: clips after which a shard is closed.
    shard_megabytes: and the size; whichever comes first.
    jobs: sources that are worked on at the same time.

    Raises ``UserError`` for a value of the wrong type or out of its range.
    """

    min_frames: int = 16
    max_frames: int = Sampling.max_frames  # a folder source keeps no more of a file
    min_side: int = 128
    cut: float = 3.0
    static: float = 0.1
    black: float = 32.0
    blurred: float = 0.1
    crf: int = 12
    gop: int = 12
    shard_clips: int = 256
    shard_megabytes: int = 512
    jobs: int = 1

    def __post_init__(self) -> None:
        for name in ("min_frames", "gop", "shard_clips", "shard_megabytes", "jobs", "min_side"):
            whole(name, getattr(self, name), 1)
        for name in ("cut", "static", "black", "blurred"):
            number(name, getattr(self, name), 0, float("inf"))
        whole("max_frames", self.max_frames, 0)
        whole("crf", self.crf, 0)
        if self.max_frames < 2 * self.min_frames - 1:  # else a cut shot could end in pieces that are too short
            raise UserError(f"max_frames={self.max_frames} must be at least {2 * self.min_frames - 1}, for min_frames")
        if self.crf > 51:
            raise UserError(f"crf={self.crf}: give 0 (lossless) to 51")


def parse_options(overrides: Sequence[str]) -> PrepareOptions:
    """Options from ``key=value``; ``UserError`` for a key or a value that cannot be."""
    if malformed := [text for text in overrides if "=" not in text]:
        raise UserError(f"'{malformed[0]}' is not key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PrepareOptions), OmegaConf.from_dotlist(list(overrides)))
        options = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    assert isinstance(options, PrepareOptions)
    return options
