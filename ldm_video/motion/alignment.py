"""Frames of a clip aligned to each other: where what one shows is found in another, and how far both agree.

What dense search finds is weighted as in non-local means (Buades et al. 2005): by how near patches are, beside how near
those of the clip usually are and how far apart a small error of the alignment puts them where the picture is steep.
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

_PATCH = 1.0  # standard deviation in pixels of the window in which patches are compared
_SLACK = 3.0  # a distance that is as many times the usual one still counts as equal
_FALL = 0.3  # what the logarithm of the weight loses for each further usual distance
_ASTRAY = 0.02  # squared pixels by which alignment is off even where it is right: a distance, times the squared slope
_SMALLEST = 16  # pixels to a side from which optical flow is searched
_PAIRS = 8  # of neighbours that tell the usual distance
_MOST_THREADS = 8
_AHEAD = 2  # frames in hand for each thread


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


def can_align(frames: Tensor, reach: int) -> bool:
    """Whether there are neighbours, and room enough to search for motion in ``t c h w``."""
    return reach > 0 and len(frames) > 1 and min(frames.shape[-2:]) >= _SMALLEST


class AlignedClip:
    """Frames, and where what they show is found in each other.

    Args:
        frames: low-res ``t 3 h w`` in [-1, 1].
        hidden: ``t 1 h w`` in {0, 1}; 1 = not to be read.

    Attributes:
        images: ``t h w c``, float32.
        usual: mean squared difference of patches of neighbouring frames, in the median: twice the variance of the
            noise, where alignment is good.
    """

    def __init__(self, frames: Tensor, hidden: Tensor) -> None:
        self.images = rearrange(frames.float().cpu(), "t c h w -> t h w c").contiguous().numpy()
        self._seen = 1 - hidden[:, 0].float().cpu().numpy()  # t h w
        self._hides = not self._seen.all()
        levels = ((self.images + 1) * 127.5).round().astype(np.uint8)
        self._grey = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in levels]
        self._threads = min(_MOST_THREADS, torch.get_num_threads())  # 1 in workers of a data loader
        self._pool = ThreadPoolExecutor(self._threads, "alignment")
        self._motions: dict[tuple[int, int], Future[np.ndarray]] = {}  # of pairs of frames, each h w 2
        self.usual = self._usual_distance()

    def neighbours(self, reach: int) -> Iterator[list[Neighbour]]:
        """Of frame after frame, what up to ``reach`` frames on each side say of it."""
        count = len(self.images)
        around = (range(max(0, t - reach), min(count, t + reach + 1)) for t in range(count))
        looked = self.look((t, [other for other in others if other != t]) for t, others in enumerate(around))
        for t, neighbours in enumerate(looked):
            self._motions = {pair: motion for pair, motion in self._motions.items() if pair[0] > t}
            yield neighbours

    def look(self, wanted: Iterable[tuple[int, Sequence[int]]]) -> Iterator[list[Neighbour]]:
        """Of frame after frame ``(t, others)``, what each of ``others`` says of it.

        Frames are looked at ahead of their use, in threads: OpenCV and NumPy let go of Python's lock.
        """
        ahead: deque[Future[list[Neighbour]]] = deque()
        for t, others in wanted:
            ahead.append(self._pool.submit(self._look, t, {other: self._motion(t, other) for other in others}))
            if len(ahead) > _AHEAD * self._threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()

    def _look(self, t: int, motions: dict[int, Future[np.ndarray]]) -> list[Neighbour]:
        frame = self.images[t]
        excused = _ASTRAY * _squared_slope(frame)
        neighbours = []
        for other, found in motions.items():
            motion = found.result()
            target = positions(motion)
            aligned = at(self.images[other], target, cv2.INTER_CUBIC)
            weight = _weight(_distance(frame, aligned), self.usual, excused)
            if self._hides:  # none that was read may be hidden
                shown = np.abs(at(self._seen[other], target, cv2.INTER_CUBIC) - 1) < 1e-3
                weight *= shown * self._seen[t]
            neighbours.append(Neighbour(other, motion, aligned, weight))
        return neighbours

    def _motion(self, frame: int, other: int) -> Future[np.ndarray]:
        """``h w 2``. A search that begins at nothing loses what is far away: it begins where that of the next frame
        towards ``other`` ended, as if motion went on evenly."""
        pair, distance = (frame, other), abs(other - frame)
        if pair not in self._motions:
            # Submitted before what waits for it: threads take work in order, so none waits for work that none takes.
            nearer = self._motion(frame + (1 if other > frame else -1), other) if distance > 1 else None
            self._motions[pair] = self._pool.submit(self._search, frame, other, nearer)
        return self._motions[pair]

    def _search(self, frame: int, other: int, nearer: Future[np.ndarray] | None) -> np.ndarray:
        distance = abs(other - frame)
        begin = None if nearer is None else nearer.result() * np.float32(distance / (distance - 1))
        return fine_flow(self._grey[frame], self._grey[other], begin)

    def _usual_distance(self) -> float:
        """The median of the medians between neighbours."""
        firsts = np.unique(np.linspace(0, len(self.images) - 2, _PAIRS).round().astype(int)).tolist()
        motions = [self._motion(t, t + 1) for t in firsts]
        return float(np.median(list(self._pool.map(self._distance_to_next, firsts, motions))))

    def _distance_to_next(self, t: int, motion: Future[np.ndarray]) -> float:
        """The median of patches."""
        aligned = at(self.images[t + 1], positions(motion.result()), cv2.INTER_CUBIC)
        return float(np.median(_distance(self.images[t], aligned)))


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
