"""Divide a picture into blocks and merge selected ones into few rectangles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class Box:
    """A rectangle of a grid; ``bottom`` and ``right`` are exclusive."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, by: int, size: tuple[int, int]) -> Box:
        """Extend each side by ``by``, clipped to a grid of ``size`` (height, width)."""
        height, width = size
        return Box(
            max(0, self.top - by), min(height, self.bottom + by), max(0, self.left - by), min(width, self.right + by)
        )

    def slices(self, factor: int = 1) -> tuple[slice, slice]:
        """Return row and column slices on a grid ``factor`` times as fine."""
        return slice(self.top * factor, self.bottom * factor), slice(self.left * factor, self.right * factor)


def boxes_below(values: np.ndarray, block: int, least: float, most: float = 1.0) -> list[Box]:
    """Return the blocks in which the mean of ``values`` ``h w`` is below ``least``, merged into boxes.

    At most a fraction ``most`` of the blocks is taken, those with the lowest means. Adjacent blocks of a row form one
    box, as do boxes with the same columns in consecutive rows. The last blocks of rows and columns are smaller if the
    sides are not multiples of ``block``.
    """
    height, width = values.shape
    tops, lefts = range(0, height, block), range(0, width, block)
    areas = np.add.reduceat(np.add.reduceat(np.ones_like(values), tops, axis=0), lefts, axis=1)
    means = np.add.reduceat(np.add.reduceat(values, tops, axis=0), lefts, axis=1) / areas
    low = np.zeros(means.shape, dtype=bool)
    lowest = np.argsort(means, axis=None, kind="stable")[: int(most * means.size)]
    low.flat[lowest] = means.flat[lowest] < least
    boxes: list[Box] = []
    above: dict[tuple[int, int], Box] = {}  # columns -> box that ends at the row above
    for top, row in zip(tops, low, strict=True):
        bottom, below = min(top + block, height), {}
        for columns in _runs(row, block, width):
            over = above.get(columns)
            if over is not None:
                boxes.remove(over)
            below[columns] = Box(over.top if over is not None else top, bottom, *columns)
            boxes.append(below[columns])
        above = below
    return boxes


def _runs(row: np.ndarray, block: int, width: int) -> list[tuple[int, int]]:
    """Return the first and the exclusive last column of each run of chosen blocks."""
    runs, number = [], 0
    for chosen, group in groupby(row):
        first, number = number, number + len(list(group))
        if chosen:
            runs.append((first * block, min(number * block, width)))
    return runs
