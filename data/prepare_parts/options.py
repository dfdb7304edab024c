"""The options of :mod:`data.prepare`: ``key=value`` on the command line."""

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
    """Options of :mod:`data.prepare`.

    Attributes:
        min_frames: drop shorter pieces.
        max_frames: split longer shots into equal pieces; at least ``2 min_frames - 1``.
        min_side: drop pieces with a shorter side, after cropping bars; in pixels.
        cut: threshold of a frame's change at a cut, relative to its neighbours (PySceneDetect, adaptive).
        static: drop pieces with a smaller mean absolute frame difference; in levels of 255.
        black: drop frames whose 99th percentile of brightness is lower; in levels of 255.
        blurred: drop pieces with less power in the finest octave, relative to the octave two below.
        crf: x264's CRF, 0..51; 12 is near lossless.
        gop: distance between key frames; short ones make random access fast.
        shard_clips: maximum number of clips in a shard.
        shard_megabytes: close a shard once its videos reach this size (MB), if that comes first.
        jobs: number of sources to process in parallel.

    Raises ``UserError`` for a value of the wrong type or out of range.
    """

    min_frames: int = 16
    max_frames: int = Sampling.max_frames  # `ClipDataset` keeps no more frames of a file
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
        if self.max_frames < 2 * self.min_frames - 1:  # else splitting a shot could give pieces that are too short
            raise UserError(f"max_frames={self.max_frames} must be at least {2 * self.min_frames - 1}, for min_frames")
        if self.crf > 51:
            raise UserError(f"crf={self.crf}: give 0 (lossless) to 51")


def parse_options(overrides: Sequence[str]) -> PrepareOptions:
    """Parse ``key=value`` overrides; raises ``UserError`` for an unknown key or a bad value."""
    if malformed := [text for text in overrides if "=" not in text]:
        raise UserError(f"'{malformed[0]}' is not key=value")
    try:
        merged = OmegaConf.merge(OmegaConf.structured(PrepareOptions), OmegaConf.from_dotlist(list(overrides)))
        options = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, YAMLError) as error:
        raise UserError(f"{' '.join(overrides)}: {str(error).splitlines()[0]}") from error
    assert isinstance(options, PrepareOptions)
    return options
