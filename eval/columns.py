"""What a column of scores means to a reader: its title, its unit, and which value is the best."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from eval.metrics.temporal import EWARP_EVALCRAFTER_UNIT, EWARP_LAI_UNIT
from eval.regions import REGIONS

BASELINE = "bicubic"  # the method beside which all others are read
GAP = "gap to reference ↓"  # heads the column of gaps beside one whose best value is the reference's own
Better = Literal["higher", "lower", "nearer", "unknown"]

# metric -> title, unit, factor to that unit, digits, which is better
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
# The metrics whose frames decide what is pictured, the first that the methods share. In the hole first: that is where
# methods that fill differ.
_LEADING = ("lpips@inside", "psnr_y@inside", "psnr@inside", "lpips", "psnr_y", "psnr", "ssim_y", "ssim")
REFERENCE = ":ref"


@dataclass(frozen=True)
class Column:
    """A column, from its name in ``summary.json``: ``metric[flow]@region``, or ``seam_error:axis``."""

    name: str
    metric: str
    title: str
    unit: str
    factor: float
    digits: int
    better: Better

    @property
    def arrow(self) -> str:
        """Behind a heading: where better is, if that is clear."""
        return _ARROWS[self.better]

    def text(self, value: float | None) -> str:
        """In the column's unit; ``-`` for None."""
        return "-" if value is None else f"{value * self.factor:.{self.digits}f}"

    @property
    def perfect(self) -> str:
        """What the reference scores against itself, where that needs no measurement; else ``-``."""
        return _PERFECT.get(self.metric.partition("_")[0], "-")


def describe(name: str) -> Column:
    """An unknown metric keeps its own name and has no best value."""
    base, _, region = name.partition("@")
    base, _, axis = base.partition(":")
    metric, _, flow = base.rstrip("]").partition("[")
    title, unit, factor, digits, better = _METRICS.get(metric, (metric, "", 1, 4, "unknown"))
    title += f"[{flow}]" if flow else ""
    title += f", {axis}" if axis else ""
    title += f" {_REGIONS.get(region, region)}" if region else ""
    return Column(name, metric, title, unit, factor, digits, better)


def ordered(names: Iterable[str]) -> list[Column]:
    """The columns without the references' own: whole frames first, then the regions; metrics in the table's order."""
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
    """The column that decides what is pictured: the first of the list that all methods share, else any that they do."""
    sets = [list(columns) for columns in columns_of_methods]
    if not sets:
        return None
    shared = [name for name in sets[0] if all(name in other for other in sets) and not name.endswith(REFERENCE)]
    return next((name for name in _LEADING if name in shared), shared[0] if shared else None)


def best(column: Column, scores: Mapping[str, Mapping[str, float]]) -> set[str]:
    """Methods (of ``method -> score of this column``) with the best value as printed.

    A tie has several, a lone method none. ``nearer``: the smallest ``gap`` to the reference's own value, for warp
    errors are won by blur.
    """
    key = "gap" if column.better == "nearer" else "mean"
    printed = {method: float(column.text(score[key])) for method, score in scores.items() if score.get(key) is not None}
    if len(scores) < 2 or not printed or column.better == "unknown":
        return set()
    winner = max(printed.values()) if column.better == "higher" else min(printed.values())
    return {method for method, value in printed.items() if value == winner}
