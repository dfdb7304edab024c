"""The benchmark's table in Markdown: every method beside the reference's own row and bicubic's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eval.metrics.temporal import EWARP_LAI_UNIT

# title, column prefix (a flow's name in brackets may follow), key within the column, factor, digits
_COLUMNS: tuple[tuple[str, str, str, float, int], ...] = (
    ("PSNR-Y dB ↑", "psnr_y", "mean", 1, 2),
    ("SSIM-Y ↑", "ssim_y", "mean", 1, 4),
    ("LPIPS ↓", "lpips", "mean", 1, 3),
    ("DISTS ↓", "dists", "mean", 1, 3),
    ("E_warp[{flow}] x1e-2", "ewarp_lai[{flow}]", "mean", 1 / EWARP_LAI_UNIT, 3),
    ("gap to ref ↓", "ewarp_lai[{flow}]", "gap", 1 / EWARP_LAI_UNIT, 3),
    ("tLPIPS x1e3 ↓", "tlpips", "mean", 1, 2),
    ("low-res dB ↑", "lowres_consistency", "mean", 1, 1),
    ("LPIPS in hole ↓", "lpips@inside", "mean", 1, 3),
    ("PSNR in hole dB ↑", "psnr@inside", "mean", 1, 2),
)
# What the reference scores against itself, for columns that have no ":ref" of their own.
_PERFECT = {"ssim_y": 1.0, "lpips": 0.0, "dists": 0.0, "tlpips": 0.0, "lpips@inside": 0.0}
_NONE = "-"


def markdown(results: Mapping[str, Mapping[str, Mapping[str, Any]]], baseline: str) -> str:
    """``track -> method -> summary`` -> one table for each track.

    Seconds and peak memory are also given as ratios to the baseline's, measured in the same run: they depend less on
    the machine. Warp error is won by blur: read its gap to the
    reference's own.
    """
    parts = [_one_table(track, methods, baseline) for track, methods in results.items() if methods]
    return "\n".join(parts)


def _one_table(track: str, methods: Mapping[str, Mapping[str, Any]], baseline: str) -> str:
    summaries = list(methods.values())
    flow = _flow_name(summaries[0])
    shown = [row for row in _COLUMNS if any(row[1].format(flow=flow) in s["scores"] for s in summaries)]
    costs = ["s / frame", f"time / {baseline}", "peak MiB", f"memory / {baseline}"]
    heads = ["method", *(row[0].format(flow=flow) for row in shown), *costs]
    lines = [f"**{track}**, {summaries[0]['clips']} clips", "", _line(heads), _line(["---"] * len(heads))]
    lines.append(
        _line(["reference", *(_reference_cell(summaries[0], row, flow) for row in shown), *[_NONE] * len(costs)])
    )
    for name, summary in methods.items():
        cells = [_cell(summary["scores"].get(row[1].format(flow=flow)), row) for row in shown]
        lines.append(_line([name, *cells, *_cost_cells(summary, methods.get(baseline))]))
    missing = {name: reason for summary in summaries for name, reason in summary["unavailable"].items()}
    if missing:
        lines += ["", *(f"{name} is not available: {reason}" for name, reason in missing.items())]
    return "\n".join(lines) + "\n"


def _cost_cells(summary: Mapping[str, Any], baseline: Mapping[str, Any] | None) -> list[str]:
    own, pace, room = f"{summary['seconds']:.3g}", _NONE, _NONE
    if baseline is not None:
        pace = f"{summary['seconds'] / baseline['seconds']:.1f}"
        room = f"{summary['peak_bytes'] / baseline['peak_bytes']:.1f}"
    return [own, pace, f"{summary['peak_bytes'] / 2**20:.0f}", room]


def _flow_name(summary: Mapping[str, Any]) -> str:
    for column in summary["scores"]:
        if column.startswith("ewarp_lai["):
            return column.removeprefix("ewarp_lai[").partition("]")[0]
    return "dis"


def _cell(score: Mapping[str, Any] | None, row: tuple[str, str, str, float, int]) -> str:
    _, _, key, factor, digits = row
    return _NONE if score is None or score.get(key) is None else f"{score[key] * factor:.{digits}f}"


def _reference_cell(summary: Mapping[str, Any], row: tuple[str, str, str, float, int], flow: str) -> str:
    _, column, key, factor, digits = row
    own = summary["scores"].get(f"{column.format(flow=flow)}:ref")
    if key == "gap":
        return f"{0:.{digits}f}"
    if own is not None:
        return f"{own['mean'] * factor:.{digits}f}"
    return f"{_PERFECT[column]:.{digits}f}" if column in _PERFECT else _NONE


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
