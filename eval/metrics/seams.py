"""Seam error: how visible a method's window and tile borders are.

Our own definition (papers show seams but do not measure them), computed on the residual ``out - ref``. In time: mean
``|d/dt residual|`` over the steps that cross a window border, divided by the same over all other steps. In space: mean
``|d/dx residual|`` across tile borders, divided by the same elsewhere (rows and columns likewise). 1 means that the
borders are invisible.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class SeamBorders:
    """Borders of windows and tiles: each number is the first frame (row, column) after a border, in output units."""

    frames: Collection[int] = ()
    rows: Collection[int] = ()
    columns: Collection[int] = ()


@dataclass
class SeamMeter:
    """Streaming seam error of a clip: add residual frames ``h w c`` in order, then read the ratios."""

    borders: SeamBorders
    _at: dict[str, list[float]] = field(default_factory=lambda: {"time": [0.0, 0.0], "space": [0.0, 0.0]})
    _elsewhere: dict[str, list[float]] = field(default_factory=lambda: {"time": [0.0, 0.0], "space": [0.0, 0.0]})
    _previous: np.ndarray | None = None
    _index: int = 0

    def add(self, residual: np.ndarray) -> None:
        """Add the next frame's residual, ``h w c``."""
        if self._previous is not None:
            crossing = self._index in self.borders.frames
            self._count("time", np.array([np.abs(residual - self._previous).mean()]), np.array([crossing]))
        for axis, borders in ((0, self.borders.rows), (1, self.borders.columns)):
            if borders:  # a direction without borders must not contribute to the other's baseline
                steps = np.abs(np.diff(residual, axis=axis)).mean(axis=(1 - axis, 2))
                self._count("space", steps, _crossings(borders, residual.shape[axis]))
        self._previous, self._index = residual, self._index + 1

    def ratios(self) -> dict[str, float]:
        """Return ``{"time": …, "space": …}``; NaN if there are no borders, or nothing but borders."""
        return {axis: _ratio(self._at[axis], self._elsewhere[axis]) for axis in ("time", "space")}

    def _count(self, axis: str, strengths: np.ndarray, crossing: np.ndarray) -> None:
        for place, chosen in ((self._at, crossing), (self._elsewhere, ~crossing)):
            place[axis][0] += float(strengths[chosen].sum(dtype=np.float64))
            place[axis][1] += int(chosen.sum())


def _crossings(positions: Collection[int], size: int) -> np.ndarray:
    """Return ``size - 1`` booleans: step ``i -> i + 1`` crosses a border if a new tile starts at ``i + 1``."""
    return np.isin(np.arange(1, size), list(positions))


def _ratio(at: list[float], elsewhere: list[float]) -> float:
    if at[1] == 0 or elsewhere[1] == 0:
        return math.nan
    numerator, denominator = at[0] / at[1], elsewhere[0] / elsewhere[1]
    if denominator == 0:
        return 1.0 if numerator == 0 else math.inf
    return numerator / denominator
