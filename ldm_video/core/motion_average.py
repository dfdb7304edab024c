"""Low-res frames averaged with their neighbours along the motion.

Noise and compression change from frame to frame, what was filmed does not. A model draws detail after what it is
shown: detail that comes and goes is flicker, on a grid several times as fine. Neighbours are aligned by dense inverse
search (Kroeger et al. 2016, arXiv:1603.03590) and weighted as in non-local means (Buades et al. 2005): by how near
their patches are, beside how near those of the clip usually are and how far apart a small error of the alignment puts
them where the picture is steep.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_video.core.warp import at, positions

_PATCH = 1.0  # standard deviation in pixels of the window in which patches are compared
_SLACK = 3.0  # a distance that is as many times the usual one still counts as equal
_FALL = 0.3  # what the logarithm of the weight loses for each further usual distance
_ASTRAY = 0.02  # squared pixels by which alignment is off even where it is right: a distance, times the squared slope
_SMALLEST = 16  # pixels to a side from which optical flow is searched
_PAIRS = 8  # of neighbours that tell the usual distance
_TOLERATED = 2.5 / 127.5  # standard deviation of a noise that is left: up to it averaging took more than it gave


@dataclass(frozen=True)
class Neighbour:
    """What another frame says of one.

    Attributes:
        frame: its number.
        motion: from the frame's pixels to where they are found in it, x and y in pixels: ``h w 2``.
        aligned: what it shows there, ``h w c``.
        weight: how far that agrees, ``h w`` in [0, 1]; 0 where one of them is hidden.
    """

    frame: int
    motion: np.ndarray
    aligned: np.ndarray
    weight: np.ndarray

    def on_grid(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Motion ``2 H W``, x and y in pixels of a finer grid of ``size``, and weight ``H W``."""
        down, across = np.divide(size, self.weight.shape)
        planes = np.stack([self.motion[..., 0] * across, self.motion[..., 1] * down, self.weight]).astype(np.float32)
        fine = F.interpolate(torch.from_numpy(planes).to(device)[None], size, mode="bilinear")[0]  # 3 H W
        return fine[:2], fine[2]


def average_along_motion(frames: Tensor, hidden: Tensor, reach: int) -> Tensor:
    """Average every frame of a noisy clip with up to ``reach`` neighbours on each side.

    Neighbours count in full where noise is all that they differ by, less where the clip is nearly clean, and not at
    all below a noise that costs less than the detail that averaging takes.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hidden: ``t 1 h w`` in {0, 1}; 1 = not to be read, nor changed.

    Returns frames of the same shape, range, type and device. Where no neighbour agrees, a pixel stays as it is; so
    does every frame of a clip of one, and of one too small to search for motion.
    """
    if not can_align(frames, reach):
        return frames
    clip = AlignedClip(frames, hidden)
    share = 1 - min(1.0, 2 * _TOLERATED**2 / (clip.usual + 1e-12))
    if share == 0:
        return frames
    averaged = []
    for t, frame in enumerate(clip.images):
        total, mass = frame.copy(), np.ones_like(frame[..., 0])  # h w c, h w
        for neighbour in clip.neighbours(t, reach):
            weight = share * neighbour.weight
            total += weight[..., None] * neighbour.aligned
            mass += weight
        averaged.append(total / mass[..., None])
    result = rearrange(torch.from_numpy(np.stack(averaged)), "t h w c -> t c h w").clamp(-1, 1)
    return result.to(frames.device, frames.dtype).contiguous()


def can_align(frames: Tensor, reach: int) -> bool:
    """Whether there are neighbours, and room enough to search for motion in ``t c h w``."""
    return reach > 0 and len(frames) > 1 and min(frames.shape[-2:]) >= _SMALLEST


class AlignedClip:
    """Frames, and where what they show is found in each other. Arguments of :func:`average_along_motion`.

    Attributes:
        images: ``t h w c``, float32.
        usual: mean squared difference of patches of neighbouring frames, in the median: twice the variance of the
            noise, where alignment is good.
    """

    def __init__(self, frames: Tensor, hidden: Tensor) -> None:
        self.images = rearrange(frames.float().cpu(), "t c h w -> t h w c").contiguous().numpy()
        self._seen = 1 - hidden[:, 0].float().cpu().numpy()  # t h w
        levels = ((self.images + 1) * 127.5).round().astype(np.uint8)
        self._grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in levels]
        self._search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST)
        self._search.setFinestScale(0)  # of its own accord it stops at half size or below: too coarse to average at
        self._motions: dict[tuple[int, int], np.ndarray] = {}  # of pairs of frames, each h w 2
        self.usual = self._usual_distance()

    def neighbours(self, t: int, reach: int) -> Iterator[Neighbour]:
        """What up to ``reach`` frames on each side of frame ``t`` say of it."""
        others = (n for n in range(max(0, t - reach), min(len(self.images), t + reach + 1)) if n != t)
        return self.look(t, others)

    def look(self, t: int, others: Iterable[int]) -> Iterator[Neighbour]:
        """What each of ``others`` says of frame ``t``. Quickest for frames in their order."""
        self._motions = {pair: motion for pair, motion in self._motions.items() if pair[0] >= t - 1}
        frame = self.images[t]
        excused = _ASTRAY * _squared_slope(frame)
        for other in others:
            motion = self._search_motion(t, other)
            target = positions(motion)
            aligned = at(self.images[other], target, cv2.INTER_CUBIC)
            shown = np.abs(at(self._seen[other], target, cv2.INTER_CUBIC) - 1) < 1e-3  # none that was read is hidden
            weight = _weight(_distance(frame, aligned), self.usual, excused) * shown * self._seen[t]
            yield Neighbour(other, motion, aligned, weight)

    def _search_motion(self, frame: int, other: int) -> np.ndarray:
        """``h w 2``. A search that begins at nothing loses what is far away: it begins where that of the next frame
        towards ``other`` ended, as if motion went on evenly."""
        pair, distance = (frame, other), abs(other - frame)
        if pair not in self._motions:
            begin = None
            if distance > 1:
                nearer = self._search_motion(frame + (1 if other > frame else -1), other)
                begin = nearer * np.float32(distance / (distance - 1))
            self._motions[pair] = self._search.calc(self._grey[frame], self._grey[other], begin)
        return self._motions[pair]

    def _usual_distance(self) -> float:
        """The median of the medians between neighbours."""
        firsts = np.unique(np.linspace(0, len(self.images) - 2, _PAIRS).round().astype(int))
        return float(np.median([np.median(self._distance_to_next(t)) for t in firsts]))

    def _distance_to_next(self, t: int) -> np.ndarray:
        aligned = at(self.images[t + 1], positions(self._search_motion(t, t + 1)), cv2.INTER_CUBIC)
        return _distance(self.images[t], aligned)


def _distance(frame: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """Mean squared difference of the patches around each pixel, ``h w c -> h w``."""
    return cv2.GaussianBlur(np.square(frame - aligned).mean(axis=-1), (0, 0), _PATCH)


def _squared_slope(frame: np.ndarray) -> np.ndarray:
    """Mean squared gradient around each pixel, ``h w c -> h w``, for each pixel of distance."""
    across, down = (cv2.Sobel(frame, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=0.5) for dx in (1, 0))
    return cv2.GaussianBlur((across**2 + down**2).mean(axis=-1), (0, 0), _PATCH)


def _weight(distance: np.ndarray, usual: float, excused: np.ndarray) -> np.ndarray:
    """``h w`` in [0, 1]. Of a pair that agrees better than usual, its own median is what is usual."""
    unit = min(usual, float(np.median(distance))) + excused + 1e-7
    return np.exp(-_FALL * np.maximum(distance / unit - _SLACK, 0))
