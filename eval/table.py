"""The benchmark's table in Markdown: every method next to the reference and bicubic."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.columns import GAP, REFERENCE, Column, ordered

# Metric and region of the columns shown, in order. A warp error is followed by its gap to the reference's own.
_SHOWN = (
    "psnr_y", "ssim_y", "lpips", "dists", "ewarp_lai", "tlpips", "lowres_consistency", "lpips@inside", "psnr@inside",
)  # fmt: skip
_WITH_GAP = "ewarp_lai"
_NONE = "-"


def markdown(results: Mapping[str, Mapping[str, Mapping[str, Any]]], baseline: str) -> str:
    """Return one table for each track of ``track -> method -> summary``.

    Seconds and peak memory are also given as ratios to the baseline's, measured in the same run, which depend less on
    the machine. Blur lowers the warp error: compare its gap to the reference's own.
    """
    parts = [_one_table(track, methods, baseline) for track, methods in results.items() if methods]
    return "\n".join(parts)


def _one_table(track: str, methods: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    summaries = list(methods.values())
    shown = _shown(summaries)
    costs = ["s / frame", f"time / {baseline}", "peak MiB", f"memory / {baseline}"]
    heads = ["method", *(_head(*each) for each in shown), *costs]
    lines = [f"**{track}**, {summaries[0]['clips']} clips", "", _line(heads), _line(["---"] * len(heads))]
    lines.append(_line(["reference", *(_reference_cell(summaries[0], *each) for each in shown), *[_NONE] * len(costs)]))
    for name, summary in methods.items():
        cells = [column.text(summary["scores"].get(column.name, {}).get(key)) for column, key in shown]
        lines.append(_line([name, *cells, *_cost_cells(summary, methods.get(baseline))]))
    missing = {name: reason for summary in summaries for name, reason in summary["unavailable"].items()}
    if missing:
        lines += ["", *(f"{name} is not available: {reason}" for name, reason in missing.items())]
    return "\n".join(lines) + "\n"


def _shown(summaries: list[Mapping[str, Any]]) -> list[tuple[Column, str]]:
    """Return the columns that at least one method has, each with its key: ``mean`` or ``gap``."""
    found = {_place(column): column for column in ordered(name for s in summaries for name in s["scores"])}
    pairs = [(found[place], key) for place in _SHOWN if place in found for key in ("mean", "gap")]
    return [(column, key) for column, key in pairs if key == "mean" or _place(column) == _WITH_GAP]


def _place(column: Column) -> str:
    """Return the column's name without the flow estimator: ``metric`` or ``metric@region``."""
    _, at, region = column.name.partition("@")
    return f"{column.metric}{at}{region}"


def _head(column: Column, key: str) -> str:
    if key == "gap":
        return GAP
    return f"{column.title} {column.unit}".rstrip() + column.arrow


def _cost_cells(summary: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    own, time_ratio, memory_ratio = f"{summary['seconds']:.3g}", _NONE, _NONE
    if baseline is not None:
        time_ratio = f"{summary['seconds'] / baseline['seconds']:.1f}"
        memory_ratio = f"{summary['peak_bytes'] / baseline['peak_bytes']:.1f}"
    return [own, time_ratio, f"{summary['peak_bytes'] / 2**20:.0f}", memory_ratio]


def _reference_cell(summary: Mapping[str, Any], column: Column, key: str) -> str:
    own = summary["scores"].get(f"{column.name}{REFERENCE}")
    if key == "gap":
        return column.text(0.0)
    return column.perfect if own is None else column.text(own["mean"])


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
