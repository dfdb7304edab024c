"""Data of the curves: one value per frame, column, method and clip, as plain numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from eval.columns import REFERENCE, ordered
from eval.report_parts.choose import thin
from eval.report_parts.load import ScoredClip, ScoredTrack

MOST_POINTS = 400  # per curve; a longer clip is drawn as means over equal blocks
_DIGITS = 5


def track_curves(track: ScoredTrack) -> dict[str, Any]:
    """Return ``{clip: {frames, step, columns: {column: {method: [value or null, ...]}}}}``, in the columns' units.

    The reference's own values, the same for all methods, are listed under the method ``reference``.
    """
    return {clip: clip_curves(track.of_clip(clip)) for clip in track.clips()}


def clip_curves(versions: Mapping[str, ScoredClip]) -> dict[str, Any]:
    """Return one clip of :func:`track_curves`. Point ``i`` covers frames ``i * step`` to ``(i + 1) * step - 1``."""
    frames = next(iter(versions.values())).frames
    step = max(1, -(-frames // MOST_POINTS))
    drawn: dict[str, dict[str, list[float | None]]] = {}
    for column in ordered(name for version in versions.values() for name in version.scores):
        lines = {}
        for method, version in versions.items():
            if column.name in version.scores:
                lines[method] = _numbers(version.scores[column.name], step, column.factor)
            if (own := f"{column.name}{REFERENCE}") in version.scores:
                lines["reference"] = _numbers(version.scores[own], step, column.factor)
        drawn[column.name] = lines
    return {"frames": frames, "step": step, "columns": drawn}


def column_titles(tracks: list[ScoredTrack]) -> dict[str, dict[str, Any]]:
    """Return column -> title, unit, digits and which value is better, for all that is drawn."""
    names = (
        name
        for track in tracks
        for method in track.methods.values()
        for c in method.clips.values()
        for name in c.scores
    )
    return {column.name: {k: v for k, v in asdict(column).items() if k != "name"} for column in ordered(names)}


def _numbers(values: np.ndarray, step: int, factor: float) -> list[float | None]:
    shown = thin(np.where(np.isfinite(values), values, np.nan), step) * factor
    return [None if np.isnan(value) else float(f"{value:.{_DIGITS}g}") for value in shown]
