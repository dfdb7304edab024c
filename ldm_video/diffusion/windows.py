"""Temporal windows and spatial tiles: split an axis, weight the overlaps, merge.

Two rules avoid seams. All windows have the same size: the last one is shifted in, never cut short. Overlaps are
cross-faded with linear ramps *normalised by their sum*, so weights add up to one for any overlap, including that of the
last window. On alternating steps the grid moves by half a stride (DiffuEraser, arXiv:2501.10018), so that no frame is
always at a window's edge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ldm_video.diffusion.guidance import Denoise


@dataclass(frozen=True)
class Window:
    """Positions ``start <= i < stop`` of one axis."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of positions."""
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """For indexing a sequence."""
        return slice(self.start, self.stop)


@dataclass(frozen=True)
class Region:
    """Where a part of a clip lies in the whole, on the grid of the denoised tensor. All slices have start and stop."""

    frames: slice
    rows: slice
    cols: slice

    @classmethod
    def whole(cls, x: Tensor) -> Region:
        """All of ``x`` ``b t c h w``."""
        return cls(slice(0, x.shape[1]), slice(0, x.shape[3]), slice(0, x.shape[4]))

    def of(self, x: Tensor) -> Tensor:
        """Return this part of ``x`` ``b t c h w``, as a view."""
        return x[:, self.frames, :, self.rows, self.cols]

    def inside(self, outer: Region) -> Region:
        """Convert this region, given relative to ``outer``, to the coordinates of ``outer``."""
        return Region(
            _shift(self.frames, outer.frames.start),
            _shift(self.rows, outer.rows.start),
            _shift(self.cols, outer.cols.start),
        )


@dataclass(frozen=True, eq=False)
class Tile:
    """A rectangle of a picture and its weight ``(rows.size, cols.size)``."""

    rows: Window
    cols: Window
    weight: Tensor


RegionDenoise = Callable[[Tensor, "Tensor | float", Region], Tensor]


def split(length: int, size: int, overlap: int, offset: int = 0) -> list[Window]:
    """Return windows that cover ``0..length``, in order, each of ``size`` (of ``length`` if that is smaller).

    Args:
        length: of the axis, at least 1.
        size: of a window, at least 1.
        overlap: minimum overlap of neighbours, in ``0..size - 1``.
        offset: moves the grid towards the start by this much, modulo the stride ``size - overlap``. Windows that would
            extend beyond either end are shifted in, so they overlap their neighbours more.

    Raises:
        ValueError: an argument is out of range.
    """
    if length < 1 or size < 1 or not 0 <= overlap < size:
        raise ValueError(f"need length >= 1 and 0 <= overlap < size, got {length=}, {size=}, {overlap=}")
    if length <= size:
        return [Window(0, length)]
    stride = size - overlap
    last = length - size
    start = -(offset % stride)
    starts = [max(start, 0)]
    while starts[-1] < last:
        start += stride
        starts.append(min(start, last))
    return [Window(start, start + size) for start in starts]


def even_size(length: int, most: int, overlap: int) -> int:
    """Return the smallest window size that covers ``length`` with as few windows as size ``most`` does.

    This keeps the overlap, and so the repeated work, small.
    """
    count = max(1, -(-(length - overlap) // (most - overlap)))
    return max(overlap + 1, -(-(length + (count - 1) * overlap) // count))


def ramp(windows: Sequence[Window]) -> list[Tensor]:
    """Return the weights of each window, ``(window.size,)`` float32, positive, with sum one at every covered position.

    A weight rises and falls linearly across the *actual* overlap with the neighbours, so the last window, which may
    overlap more, gets a longer ramp; there is no ramp at the two ends of the axis. Dividing by the sum handles overlaps
    of more than half a window, where three or more windows meet.

    Args:
        windows: in order and without gaps, as returned by :func:`split`.
    """
    raw = []
    for i, window in enumerate(windows):
        position = torch.arange(1, window.size + 1, dtype=torch.float64)
        weight = torch.ones_like(position)
        if i > 0:
            weight = torch.minimum(weight, position / (windows[i - 1].stop - window.start + 1))
        if i + 1 < len(windows):
            weight = torch.minimum(weight, position.flip(0) / (window.stop - windows[i + 1].start + 1))
        raw.append(weight)
    total = torch.zeros(windows[-1].stop, dtype=torch.float64)
    for window, weight in zip(windows, raw, strict=True):
        total[window.slice] += weight
    return [(weight / total[window.slice]).float() for window, weight in zip(windows, raw, strict=True)]


def merge(parts: Iterable[Tensor], windows: Sequence[Window], dim: int) -> Tensor:
    """Return the weighted sum of ``parts``, one per window, along the whole axis ``dim``.

    The sum is accumulated in float32 or better and returned in the dtype of the first part. ``parts`` may be a
    generator: each part is released once it is added. Raises ``ValueError`` if there are no parts.
    """
    canvas = _Canvas()
    for part, window, weight in zip(parts, windows, ramp(windows), strict=True):
        dim %= part.ndim
        shape = [*part.shape[:dim], windows[-1].stop, *part.shape[dim + 1 :]]
        index = (slice(None),) * dim + (window.slice,)
        canvas.add(part, weight.reshape(-1, *(1,) * (part.ndim - dim - 1)), index, shape)
    return canvas.result()


def tiles(
    height: int,
    width: int,
    tile: tuple[int, int],
    overlap: tuple[int, int],
    offset: tuple[int, int] = (0, 0),
) -> list[Tile]:
    """Return tiles that cover ``height x width``, row by row: windows of both axes, weighted by their outer product.

    Args:
        height, width: of the picture.
        tile: (height, width) of a tile.
        overlap: minimum (vertical, horizontal) overlap of neighbours.
        offset: (vertical, horizontal) offset of the grid, see :func:`split`.
    """
    rows = split(height, tile[0], overlap[0], offset[0])
    cols = split(width, tile[1], overlap[1], offset[1])
    return [
        Tile(row, col, torch.outer(down, across))
        for row, down in zip(rows, ramp(rows), strict=True)
        for col, across in zip(cols, ramp(cols), strict=True)
    ]


def merge_tiles(parts: Iterable[Tensor], tiles: Sequence[Tile]) -> Tensor:
    """Return the weighted sum of ``parts`` ``... h w``, one per tile, as the whole picture; see :func:`merge`."""
    canvas = _Canvas()
    height, width = tiles[-1].rows.stop, tiles[-1].cols.stop
    for part, tile in zip(parts, tiles, strict=True):
        canvas.add(part, tile.weight, (..., tile.rows.slice, tile.cols.slice), [*part.shape[:-2], height, width])
    return canvas.result()


def windowed(denoise: RegionDenoise, size: int, overlap: int) -> Denoise:
    """Return a denoiser that runs ``denoise`` on windows of ``size`` frames and merges the outputs.

    Args:
        denoise: ``denoise(part, timestep, region)``; the region tells which frames of the clip the part has, so that
            evidence can be cropped to match (``region.of(canvas)``).
        size: frames per window.
        overlap: minimum number of frames that neighbours share.

    The grid moves by half a stride on every other step. Steps are identified by their timesteps, which decrease within
    a run, so guidance and two-stage solvers that call twice at one timestep get the same grid. An increase starts a new
    run. A run that starts below the last timestep of the previous one looks like its continuation: make a new wrapper
    for each run.
    """
    step_of = _StepCounter()

    def run(x: Tensor, timestep: Tensor | float, region: Region | None = None) -> Tensor:
        outer = region or Region.whole(x)
        offset = (size - overlap) // 2 if step_of(timestep) % 2 else 0
        windows = split(x.shape[1], size, overlap, offset)
        whole = Region.whole(x)
        regions = [Region(window.slice, whole.rows, whole.cols) for window in windows]
        return merge((denoise(part.of(x), timestep, part.inside(outer)) for part in regions), windows, dim=1)

    return run


def tiled(denoise: RegionDenoise, tile: tuple[int, int], overlap: tuple[int, int]) -> Denoise:
    """Return a denoiser that runs ``denoise`` on tiles and merges the outputs; like :func:`windowed`, in space.

    ``windowed(tiled(denoise, ...), ...)`` splits time and space; ``denoise`` then gets the region within the whole
    clip.

    Args:
        denoise: ``denoise(part, timestep, region)``.
        tile: (height, width) of a tile on the grid of the denoised tensor.
        overlap: minimum (vertical, horizontal) overlap of neighbours.
    """
    step_of = _StepCounter()

    def run(x: Tensor, timestep: Tensor | float, region: Region | None = None) -> Tensor:
        outer = region or Region.whole(x)
        moved = step_of(timestep) % 2
        offset = ((tile[0] - overlap[0]) // 2, (tile[1] - overlap[1]) // 2) if moved else (0, 0)
        grid = tiles(x.shape[3], x.shape[4], tile, overlap, offset)
        frames = Region.whole(x).frames
        regions = [Region(frames, piece.rows.slice, piece.cols.slice) for piece in grid]
        return merge_tiles((denoise(part.of(x), timestep, part.inside(outer)) for part in regions), grid)

    return run


class _StepCounter:
    """Number of the current step in its run, derived from timesteps, which decrease within a run."""

    def __init__(self) -> None:
        self._last = -float("inf")
        self._step = 0

    def __call__(self, timestep: Tensor | float) -> int:
        now = float(torch.as_tensor(timestep).flatten()[0])
        if now > self._last:
            self._step = 0
        elif now < self._last:
            self._step += 1
        self._last = now
        return self._step


class _Canvas:
    """A weighted sum that takes its size, dtype and device from the first part."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._dtype = torch.float32

    def add(self, part: Tensor, weight: Tensor, index: tuple[Any, ...], shape: Sequence[int]) -> None:
        if self._total is None:
            self._dtype = part.dtype
            self._total = part.new_zeros(shape, dtype=torch.promote_types(part.dtype, torch.float32))
        self._total[index] += part * weight.to(part.device)

    def result(self) -> Tensor:
        if self._total is None:
            raise ValueError("there is nothing to merge")
        return self._total.to(self._dtype)


def _shift(positions: slice, by: int) -> slice:
    return slice(positions.start + by, positions.stop + by)
