"""A picture in blocks: those that are chosen, as few rectangles."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import numpy as np


@dataclass(frozen=True)
class Box:
    """Rows and columns of a grid: from a first one to one behind the last."""

    top: int
    bottom: int
    left: int
    right: int

    def grown(self, by: int, size: tuple[int, int]) -> Box:
        """By as many rows and columns on each side, as far as a grid of ``size`` (height, width) goes."""
        height, width = size
        return Box(
            max(0, self.top - by), min(height, self.bottom + by), max(0, self.left - by), min(width, self.right + by)
        )

    def slices(self, factor: int = 1) -> tuple[slice, slice]:
        """Rows and columns on a grid ``factor`` times as fine."""
        return slice(self.top * factor, self.bottom * factor), slice(self.left * factor, self.right * factor)


def boxes_below(values: np.ndarray, block: int, least: float, most: float = 1.0) -> list[Box]:
    """Blocks in which the mean of ``values`` ``h w`` is below ``least``: the lowest ones, a share of ``most`` at most.

    Blocks side by side are one box, and so are boxes of the same columns below each other. The last blocks of a row or
    a column are smaller where sides are no multiples of ``block``.
    """
    height, width = values.shape
    tops, lefts = range(0, height, block), range(0, width, block)
    areas = np.add.reduceat(np.add.reduceat(np.ones_like(values), tops, axis=0), lefts, axis=1)
    means = np.add.reduceat(np.add.reduceat(values, tops, axis=0), lefts, axis=1) / areas
    low = np.zeros(means.shape, dtype=bool)
    lowest = np.argsort(means, axis=None, kind="stable")[: int(most * means.size)]
    low.flat[lowest] = means.flat[lowest] < least
    boxes: list[Box] = []
    above: dict[tuple[int, int], Box] = {}  # by columns, of the row above
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
    """First column and one behind the last of the blocks that are chosen one after another."""
    runs, number = [], 0
    for chosen, group in groupby(row):
        first, number = number, number + len(list(group))
        if chosen:
            runs.append((first * block, min(number * block, width)))
    return runs
