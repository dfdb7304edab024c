"""Align the frames of a clip to each other: where the content of one is found in another, and how well both agree.

Matches of the dense search are weighted as in non-local means (Buades et al. 2005), by patch distance. The distance is
relative to the typical one of the clip and to what a small alignment error causes where the picture has steep
gradients.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm_video.motion.search import fine_flow
from ldm_video.motion.warp import at, positions

_PATCH = 1.0  # standard deviation in pixels of the Gaussian window in which patches are compared
_TOLERANCE = 3.0  # patches up to this many times the typical distance apart count as equal
_DECAY = 0.3  # decay rate of the weight: exp(-rate) for each further typical distance
# Variance in squared pixels of an alignment that is right; times the squared gradient, the patch distance it causes.
_ALIGNMENT_VARIANCE = 0.02
_MIN_SIDE = 16  # shortest side in pixels for which optical flow is searched
_SAMPLED_PAIRS = 8  # pairs of adjacent frames from which the typical distance is estimated
_MOST_THREADS = 8
_QUEUED_PER_THREAD = 2  # frames queued per thread


@dataclass(frozen=True)
class Neighbour:
    """Another frame, aligned to a reference frame.

    Attributes:
        frame: its number.
        motion: from the reference frame's pixels to their positions in this one, x and y in pixels: ``h w 2``.
        aligned: this frame warped to the reference frame, ``h w c``.
        weight: agreement, ``h w`` in [0, 1]; 0 where either frame is hidden.
    """

    frame: int
    motion: np.ndarray
    aligned: np.ndarray
    weight: np.ndarray

    def on_grid(self, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return motion ``2 H W`` (x and y, in pixels of a finer grid of ``size``) and weight ``H W``."""
        down, across = np.divide(size, self.weight.shape)
        planes = np.stack([self.motion[..., 0] * across, self.motion[..., 1] * down, self.weight]).astype(np.float32)
        fine = F.interpolate(torch.from_numpy(planes).to(device)[None], size, mode="bilinear")[0]  # 3 H W
        return fine[:2], fine[2]


def can_align(frames: Tensor, reach: int) -> bool:
    """Return whether ``t c h w`` has neighbouring frames within ``reach`` and is large enough for optical flow."""
    return reach > 0 and len(frames) > 1 and min(frames.shape[-2:]) >= _MIN_SIDE


class AlignedClip:
    """The frames of a clip and the motion between them.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hidden: ``t 1 h w`` in {0, 1}; 1 = not to be read.

    Attributes:
        images: ``t h w c``, float32.
        typical: median of the mean squared difference between patches of adjacent frames: twice the noise variance,
            where the alignment is good.
    """

    def __init__(self, frames: Tensor, hidden: Tensor) -> None:
        self.images = rearrange(frames.float().cpu(), "t c h w -> t h w c").contiguous().numpy()
        self._visible = 1 - hidden[:, 0].float().cpu().numpy()  # t h w
        self._has_hidden = not self._visible.all()
        levels = ((self.images + 1) * 127.5).round().astype(np.uint8)
        self._grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in levels]
        self._threads = min(_MOST_THREADS, torch.get_num_threads())  # 1 in data loader workers
        self._pool = ThreadPoolExecutor(self._threads, "alignment")
        self._motions: dict[tuple[int, int], Future[np.ndarray]] = {}  # (frame, other) -> h w 2
        self.typical = self._typical_distance()

    def neighbours(self, reach: int) -> Iterator[list[Neighbour]]:
        """Yield for each frame in turn its neighbours: up to ``reach`` frames on each side, aligned to it."""
        count = len(self.images)
        around = (range(max(0, t - reach), min(count, t + reach + 1)) for t in range(count))
        results = self.look((t, [other for other in others if other != t]) for t, others in enumerate(around))
        for t, neighbours in enumerate(results):
            self._motions = {pair: motion for pair, motion in self._motions.items() if pair[0] > t}
            yield neighbours

    def look(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[list[Neighbour]]:
        """Yield for each ``(t, others)`` the frames ``others`` aligned to frame ``t``.

        Frames are aligned ahead of their use, in threads: OpenCV and NumPy release the GIL.
        """
        ahead: deque[Future[list[Neighbour]]] = deque()
        for t, others in wanted:
            ahead.append(self._pool.submit(self._align, t, {other: self._motion(t, other) for other in others}))
            if len(ahead) > _QUEUED_PER_THREAD * self._threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _align(self, t: int, motions: dict[int, Future[np.ndarray]]) -> list[Neighbour]:
        frame = self.images[t]
        slope_allowance = _ALIGNMENT_VARIANCE * _squared_slope(frame)
        neighbours = []
        for other, found in motions.items():
            motion = found.result()
            target = positions(motion)
            aligned = at(self.images[other], target, cv2.INTER_CUBIC)
            weight = _weight(_distance(frame, aligned), self.typical, slope_allowance)
            if self._has_hidden:  # no pixel that was interpolated from may be hidden
                visible = np.abs(at(self._visible[other], target, cv2.INTER_CUBIC) - 1) < 1e-3
                weight *= visible * self._visible[t]
            neighbours.append(Neighbour(other, motion, aligned, weight))
        return neighbours

    def _motion(self, frame: int, other: int) -> Future[np.ndarray]:
        """Return the motion from ``frame`` to ``other``, ``h w 2``.

        A search that starts from zero motion misses large displacements. So it starts from the motion of ``frame`` to
        the next frame nearer to it, extrapolated linearly.
        """
        pair, distance = (frame, other), abs(other - frame)
        if pair not in self._motions:
            # Submitted before the search that waits for it: threads take work in order, so this cannot deadlock.
            nearer = self._motion(frame + (1 if other > frame else -1), other) if distance > 1 else None
            self._motions[pair] = self._pool.submit(self._search, frame, other, nearer)
        return self._motions[pair]

    def _search(self, frame: int, other: int, nearer: Future[np.ndarray] | None) -> np.ndarray:
        distance = abs(other - frame)
        begin = None if nearer is None else nearer.result() * np.float32(distance / (distance - 1))
        return fine_flow(self._grey[frame], self._grey[other], begin)

    def _typical_distance(self) -> float:
        """Return the median, over sampled pairs of adjacent frames, of the median patch distance."""
        firsts = np.unique(np.linspace(0, len(self.images) - 2, _SAMPLED_PAIRS).round().astype(int)).tolist()
        motions = [self._motion(t, t + 1) for t in firsts]
        return float(np.median(list(self._pool.map(self._distance_to_next, firsts, motions))))

    def _distance_to_next(self, t: int, motion: Future[np.ndarray]) -> float:
        """Return the median patch distance between frame ``t`` and the next one aligned to it."""
        aligned = at(self.images[t + 1], positions(motion.result()), cv2.INTER_CUBIC)
        return float(np.median(_distance(self.images[t], aligned)))


def _distance(frame: np.ndarray, aligned: np.ndarray) -> np.ndarray:
    """Mean squared difference of the patches around each pixel, ``h w c -> h w``."""
    return cv2.GaussianBlur(np.square(frame - aligned).mean(axis=-1), (0, 0), _PATCH)


def _squared_slope(frame: np.ndarray) -> np.ndarray:
    """Mean squared gradient per pixel of distance, around each pixel, ``h w c -> h w``."""
    across, down = (cv2.Sobel(frame, cv2.CV_32F, dx, 1 - dx, ksize=1, scale=0.5) for dx in (1, 0))
    return cv2.GaussianBlur((across**2 + down**2).mean(axis=-1), (0, 0), _PATCH)


def _weight(distance: np.ndarray, typical: float, slope_allowance: np.ndarray) -> np.ndarray:
    """Weight ``h w`` in [0, 1] of patch distances ``h w``.

    For a pair that agrees better than typical, its own median is used as the typical distance.
    """
    unit = min(typical, float(np.median(distance))) + slope_allowance + 1e-7
    return np.exp(-_DECAY * np.maximum(distance / unit - _TOLERANCE, 0))
