"""Selection of the frames, crops and scan lines to show. Pure functions on arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from einops import reduce

Box = tuple[int, int, int, int]  # top, left, height, width


def difference(scores: Mapping[str, np.ndarray], higher_is_better: bool = True) -> np.ndarray:
    """Return how much the methods differ at each frame, ``t``: highest minus lowest score; NaN below two scores.

    For a single method, large values mark its worst frames instead.

    Args:
        scores: method -> ``t``, NaN (or infinite: identical pictures) where a frame has no score.
        higher_is_better: only used for a single method.
    """
    table = np.stack([np.where(np.isfinite(values), values, np.nan) for values in scores.values()])  # m t
    if len(table) == 1:
        return -table[0] if higher_is_better else table[0]
    enough = (~np.isnan(table)).sum(axis=0) >= 2
    lowest = np.where(np.isnan(table), np.inf, table).min(axis=0)
    highest = np.where(np.isnan(table), -np.inf, table).max(axis=0)
    spread = np.full(table.shape[1], np.nan)
    spread[enough] = highest[enough] - lowest[enough]
    return spread


def largest(values: np.ndarray, count: int, apart: int) -> list[int]:
    """Return the indices of the ``count`` largest values, largest first, at least ``apart`` from each other.

    Of equal values the earlier comes first; NaN is never chosen.
    """
    chosen: list[int] = []
    for index in np.argsort(-values, kind="stable"):
        if len(chosen) == count or np.isnan(values[index]):
            break
        if all(abs(int(index) - other) >= apart for other in chosen):
            chosen.append(int(index))
    return chosen


def most_different_box(frames: Sequence[np.ndarray], size: tuple[int, int]) -> Box:
    """Return the box of ``size`` (cropped to the frame) in which the frames differ most on average.

    The difference at a pixel is the highest minus the lowest value, averaged over channels.

    Args:
        frames: each ``h w 3`` uint8, two or more.
    """
    lowest = np.minimum.reduce(frames).astype(np.float64)
    highest = np.maximum.reduce(frames).astype(np.float64)
    spread = reduce(highest - lowest, "h w c -> h w", "mean")
    height, width = min(size[0], spread.shape[0]), min(size[1], spread.shape[1])
    sums = np.zeros((spread.shape[0] + 1, spread.shape[1] + 1))
    sums[1:, 1:] = spread.cumsum(axis=0).cumsum(axis=1)
    boxes = sums[height:, width:] - sums[:-height, width:] - sums[height:, :-width] + sums[:-height, :-width]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left), height, width


def busiest_line(activity: np.ndarray, width: int) -> tuple[int, int, int]:
    """Return ``(row, left, width)`` of the scan line to show.

    The row is the one with the largest mean activity; within it, the ``width`` pixels (at most the whole row) with the
    largest sum.

    Args:
        activity: ``h w``, the sum over time of each pixel's change between consecutive frames.
    """
    width = min(width, activity.shape[1])
    row = int(activity.mean(axis=1).argmax())
    sums = np.concatenate([[0.0], activity[row].cumsum()])
    return row, int((sums[width:] - sums[:-width]).argmax()), width


def thin(values: np.ndarray, step: int) -> np.ndarray:
    """Average over blocks of ``step`` frames, ignoring NaN; a block without any value is NaN."""
    if step == 1:
        return values
    padded = np.full(-(-len(values) // step) * step, np.nan)
    padded[: len(values)] = values
    rows = padded.reshape(-1, step)
    known = ~np.isnan(rows)
    with np.errstate(invalid="ignore"):
        return np.where(known, rows, 0).sum(axis=1) / np.where(known.any(axis=1), known.sum(axis=1), np.nan)
