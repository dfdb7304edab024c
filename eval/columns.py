"""Presentation of score columns: title, unit, and which value is best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eval.metrics.temporal import EWARP_EVALCRAFTER_UNIT, EWARP_LAI_UNIT
from eval.regions import REGIONS

BASELINE = "bicubic"  # the method that all others are compared with
GAP = "gap to reference ↓"  # heading of the gap next to a column whose best value is the reference's own
Better = Literal["higher", "lower", "nearer", "unknown"]

# metric -> title, unit, factor to that unit, digits, which value is better
_METRICS: dict[str, tuple[str, str, float, int, Better]] = {
    "psnr": ("PSNR", "dB", 1, 2, "higher"),
    "psnr_y": ("PSNR-Y", "dB", 1, 2, "higher"),
    "ssim": ("SSIM", "", 1, 4, "higher"),
    "ssim_y": ("SSIM-Y", "", 1, 4, "higher"),
    "ssim_window65": ("SSIM, window 65", "", 1, 4, "higher"),
    "lpips": ("LPIPS", "", 1, 3, "lower"),
    "lpips_vgg": ("LPIPS-VGG", "", 1, 3, "lower"),
    "dists": ("DISTS", "", 1, 3, "lower"),
    "ewarp_lai": ("E_warp", "x1e-2", 1 / EWARP_LAI_UNIT, 3, "nearer"),
    "ewarp_evalcrafter": ("EvalCrafter E_warp", "x1e-3", 1 / EWARP_EVALCRAFTER_UNIT, 3, "nearer"),
    "tof": ("tOF", "", 1, 3, "lower"),
    "tlpips": ("tLPIPS", "x1e3", 1, 2, "lower"),
    "temporal_flickering": ("temporal flickering", "", 1, 4, "nearer"),
    "lowres_consistency": ("low-res consistency", "dB", 1, 1, "nearer"),
    "seam_error": ("seam error", "x", 1, 3, "lower"),
}
_ARROWS: dict[Better, str] = {"higher": " ↑", "lower": " ↓", "nearer": "", "unknown": ""}
_REGIONS = dict(zip(REGIONS, ("in hole", "around hole", "outside hole"), strict=True))
_PERFECT = {"psnr": "∞", "ssim": "1", "lpips": "0", "dists": "0", "tof": "0", "tlpips": "0"}
# Candidates for the metric that selects the frames to show; the first that all methods share is used. In-hole metrics
# come first, because that is where filling methods differ.
_LEADING = ("lpips@inside", "psnr_y@inside", "psnr@inside", "lpips", "psnr_y", "psnr", "ssim_y", "ssim")
REFERENCE = ":ref"


@dataclass(frozen=True)
class Column:
    """A score column. ``name``: as in ``summary.json``, ``metric[flow]@region`` or ``seam_error:axis``."""

    name: str
    metric: str
    title: str
    unit: str
    factor: float
    digits: int
    better: Better

    @property
    def arrow(self) -> str:
        """Suffix of a heading: the direction of better values, if there is one."""
        return _ARROWS[self.better]

    def text(self, value: float | None) -> str:
        """Format a value in the column's unit; ``-`` for None."""
        return "-" if value is None else f"{value * self.factor:.{self.digits}f}"

    @property
    def perfect(self) -> str:
        """The reference's score against itself if it is known without measurement, else ``-``."""
        return _PERFECT.get(self.metric.partition("_")[0], "-")


def describe(name: str) -> Column:
    """Describe a column by its name. An unknown metric keeps its own name and has no best value."""
    base, _, region = name.partition("@")
    base, _, axis = base.partition(":")
    metric, _, flow = base.rstrip("]").partition("[")
    title, unit, factor, digits, better = _METRICS.get(metric, (metric, "", 1, 4, "unknown"))
    title += f"[{flow}]" if flow else ""
    title += f", {axis}" if axis else ""
    title += f" {_REGIONS.get(region, region)}" if region else ""
    return Column(name, metric, title, unit, factor, digits, better)


def ordered(names: Iterable[str]) -> list[Column]:
    """Sort columns, leaving out the references' own: whole frames first, then regions; metrics in the table's order."""
    places = {metric: place for place, metric in enumerate(_METRICS)}
    regions = ["", *_REGIONS]

    def place(column: Column) -> tuple[int, int, str]:
        region = column.name.partition("@")[2]
        return (
            regions.index(region) if region in regions else len(regions),
            places.get(column.metric, len(places)),
            column.name,
        )

    kept = dict.fromkeys(name for name in names if not name.endswith(REFERENCE))
    return sorted((describe(name) for name in kept), key=place)


def leading(columns_of_methods: Iterable[Iterable[str]]) -> str | None:
    """Return the column that selects the frames to show: the first candidate that all methods share, else any other."""
    sets = [list(columns) for columns in columns_of_methods]
    if not sets:
        return None
    shared = [name for name in sets[0] if all(name in other for other in sets) and not name.endswith(REFERENCE)]
    return next((name for name in _LEADING if name in shared), shared[0] if shared else None)


def best(column: Column, scores: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Return the methods (of ``method -> score of this column``) whose printed value is best.

    Several if they tie, none if there is only one method. ``nearer``: the smallest ``gap`` to the reference's own
    value, because blur lowers warp errors.
    """
    key = "gap" if column.better == "nearer" else "mean"
    printed = {method: float(column.text(score[key])) for method, score in scores.items() if score.get(key) is not None}
    if len(scores) < 2 or not printed or column.better == "unknown":
        return set()
    winner = max(printed.values()) if column.better == "higher" else min(printed.values())
    return {method for method, value in printed.items() if value == winner}
