"""Scores of earlier runs on the same inputs, kept in ``results.json`` next to this run's."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Results = dict[str, dict[str, dict[str, Any]]]  # track -> method -> summary
KEY = "inputs"  # in a summary: identifies what was scored


def inputs_key(*parts: object) -> str:
    """Return a digest of what a track's scores depend on, apart from the method."""
    return hashlib.sha256(json.dumps(parts, default=str, sort_keys=True).encode()).hexdigest()[:16]


def read_kept(path: Path, keys: Mapping[str, str]) -> tuple[Results, list[str]]:
    """Read the results in ``path`` that were measured on the inputs identified by ``keys`` (by track).

    Returns them, and the names of the tracks of which some were dropped.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        kept = {
            track: {name: summary for name, summary in methods.items() if summary.get(KEY) == keys.get(track, "")}
            for track, methods in stored.items()
        }
        dropped = [track for track, methods in kept.items() if len(methods) < len(stored[track])]
    except (OSError, ValueError, AttributeError):  # no file, or not written by a benchmark
        return {}, []
    return {track: methods for track, methods in kept.items() if methods}, dropped


def in_order(results: Results, tracks: Sequence[str], methods: Sequence[str]) -> Results:
    """Sort tracks and methods into the given order; those not listed come last."""

    def ordered(found: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
        return {name: found[name] for name in [*(n for n in names if n in found), *found]}

    return {track: ordered(by_method, methods) for track, by_method in ordered(results, tracks).items()}
