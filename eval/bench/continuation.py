"""Measure the joins of a long clip: ``python -m eval.bench.continuation --clip HD_CLIP [--model BUNDLE]``.

A crop of one HD clip is played forwards and backwards until it is ``--frames`` long, downscaled by the model's factor
and restored as ``infer.py`` would, once for each way of joining segments. Printed for each:

- ``seam``: temporal seam error (:mod:`eval.metrics.seams`) of the residual at segment borders; ``window``: the same at
  the window borders inside segments. At 1 a border is invisible.
- ``colour``: distance of the mean colour from the reference's, in levels of 0..255; ``contrast``: standard deviation
  relative to the reference's; ``low-res dB``: low-res consistency. Each is given for the first and the last 100 frames;
  a chain that drifts gets worse from first to last.

Then the tile borders: spatial seam error where tiles overlap, next to that of the same rows and columns without tiles.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice, pairwise
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from rich.console import Console
from rich.table import Table
from torch import Tensor

from eval.clips import frames_of
from eval.degradations import shrink
from eval.framewise import to_pixels
from eval.metrics.consistency import lowres_consistency
from eval.metrics.seams import SeamBorders, SeamMeter
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.diffusion.windows import split, tiles
from ldm_video.models.bundle import load_bundle
from ldm_video.models.device import place
from ldm_video.models.video_model import SamplingDefaults, VideoModel
from ldm_video.pipeline.arguments import SHIPPED
from ldm_video.pipeline.plan import JOINS, PlanRules, Segment, make_plan
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.pipeline.stream import Piece, restore_segment

ENDS = 100  # number of frames compared at each end of the clip


@dataclass(frozen=True)
class Frame:
    """Metrics of one frame.

    Attributes:
        colour: distance of the mean colour from the reference's, in levels of 0..255.
        contrast: standard deviation relative to the reference's.
        lowres: low-res consistency, PSNR in dB.
    """

    colour: float
    contrast: float
    lowres: float


@dataclass(frozen=True)
class Result:
    """Seam errors at segment and window borders, and the metrics of every frame. ``window`` is NaN without borders."""

    seam: float
    window: float
    frames: Sequence[Frame]


def there_and_back(clip: np.ndarray, frames: int) -> np.ndarray:
    """Return ``t h w c`` played forwards and backwards until it has ``frames`` frames."""
    order = [*range(len(clip)), *range(len(clip) - 2, 0, -1)]
    return clip[list(islice(cycle(order), frames))]


def measure(model: VideoModel, truth: np.ndarray, rules: PlanRules) -> Result:
    """Restore a low-res copy of ``truth`` ``t H W 3`` in [0, 1] segment by segment and measure the result."""
    own = model.sampling
    scale, settings = round(own.scale), replace(_model_settings(own), window=own.window, overlap=rules.overlap)
    restorer = Restorer(model, settings)
    rng = np.random.default_rng(0)
    lowres = np.stack([shrink(frame, scale, 1.0, 2.0, rng) for frame in truth])  # t h w 3
    plan = make_plan(len(truth), (), rules)
    seams, windows = (
        SeamMeter(SeamBorders(_segment_borders(plan))),
        SeamMeter(SeamBorders(_window_borders(plan, settings))),
    )
    frames = []
    for index, output in enumerate(_outputs(restorer, scale, lowres, plan, rules)):
        for meter in (seams, windows):
            meter.add(output - truth[index])
        colour_distance = np.abs(output.mean(axis=(0, 1)) - truth[index].mean(axis=(0, 1))).mean() * 255
        contrast = output.std() / truth[index].std()
        frames.append(Frame(float(colour_distance), float(contrast), lowres_consistency(output, lowres[index])))
    return Result(seams.ratios()["time"], windows.ratios()["time"], frames)


def measure_tiles(model: VideoModel, truth: np.ndarray, tile: int, overlap: int) -> tuple[float, float]:
    """Return the spatial seam error where ``tile`` x ``tile`` tiles meet, and at the same places without tiles."""
    scale = round(model.sampling.scale)
    lowres = torch.stack([_pixels(shrink(frame, scale, 1.0, 2.0, np.random.default_rng(0))) for frame in truth])
    height, width = truth.shape[1], truth.shape[2]
    hole = torch.zeros(len(truth), 1, height, width)
    grid = tiles(height, width, (tile, tile), (overlap, overlap))
    rows = {r for t in grid for r in (t.rows.start, t.rows.stop) if 0 < r < height}
    columns = {c for t in grid for c in (t.cols.start, t.cols.stop) if 0 < c < width}
    errors = []
    for side in (tile, None):
        tiling = None if side is None else (side, side)
        settings = replace(_model_settings(model.sampling), tile=tiling, tile_overlap=overlap)
        output = _images(Restorer(model, settings)(lowres, hole, range(len(truth))))
        meter = SeamMeter(SeamBorders(rows=rows, columns=columns))
        for t in range(len(truth)):
            meter.add(output[t] - truth[t])
        errors.append(meter.ratios()["space"])
    return errors[0], errors[1]


def _model_settings(own: SamplingDefaults) -> RestoreSettings:
    """Return the processing that ``infer.py`` applies to the frames before and after the model."""
    return RestoreSettings(average=own.average, steady=own.steady, fidelity=own.fidelity)


def _outputs(
    restorer: Restorer, scale: int, lowres: np.ndarray, plan: Sequence[Segment], rules: PlanRules
) -> Iterator[np.ndarray]:
    """Yield the finished frames ``H W 3`` in [0, 1], in order."""
    empty = torch.zeros(1, lowres.shape[1] * scale, lowres.shape[2] * scale)  # 1 H W
    tail: Tensor | None = None

    def restore(
        frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None
    ) -> Tensor:
        return restorer(frames, hole, indices, before=before, shown=shown)

    for segment in plan:
        pieces = [Piece(_pixels(lowres[i]), empty, i) for i in range(segment.start, segment.stop)]
        output = restore_segment(segment, pieces, tail, restore, rules)  # t 3 H W
        tail = output[len(output) - rules.overlap :]
        yield from _images(output[segment.first - segment.start : segment.last - segment.start])


def _segment_borders(plan: Sequence[Segment]) -> set[int]:
    """Return the steps at which one segment hands over to the next: all frames they share, and the one after."""
    borders: set[int] = set()
    for before, after in pairwise(plan):
        borders |= set(range(after.start, before.stop + 1))
    return borders


def _window_borders(plan: Sequence[Segment], settings: RestoreSettings) -> set[int]:
    borders: set[int] = set()
    for segment in plan:
        windows = split(segment.stop - segment.start, settings.window, settings.overlap)
        for before, after in pairwise(windows):
            borders |= set(range(segment.start + after.start, segment.start + before.stop + 1))
    return borders - _segment_borders(plan)


def _pixels(image: np.ndarray) -> Tensor:
    """Convert ``h w 3`` in [0, 1] to ``3 h w`` in [-1, 1], rounded to 8 bits."""
    return to_pixels(np.round(image * 255).clip(0, 255).astype(np.uint8))


def _images(clip: Tensor) -> np.ndarray:
    """Convert ``t 3 h w`` in [-1, 1] to ``t h w 3`` in [0, 1]."""
    return rearrange((clip.clamp(-1, 1) + 1) / 2, "t c h w -> t h w c").numpy()


def _crop(clip: np.ndarray, size: int, multiple: int) -> np.ndarray:
    """Crop the central ``size`` x ``size`` pixels of ``t h w c``, rounded down to a ``multiple``.

    Raises ``UserError`` if less than one ``multiple`` is left.
    """
    height, width = clip.shape[1:3]
    side = min(size, height, width) // multiple * multiple
    if side < multiple:
        raise UserError(f"a crop of {size} pixels is less than {multiple}, the model's least; give a larger --size")
    top, left = (height - side) // 2, (width - side) // 2
    return clip[:, top : top + side, left : left + side]


def main() -> None:
    """Measure and print."""
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--clip", type=Path, required=True, help="a clean HD clip")
    parser.add_argument("--model", default=SHIPPED, help="a bundle; default: the shipped one")
    parser.add_argument("--frames", type=int, default=1000)
    parser.add_argument("--size", type=int, default=192, help="of the crop, in output pixels")
    parser.add_argument("--tile", type=int, default=128, help="side of a tile, in output pixels")
    arguments = parser.parse_args()
    if arguments.frames < 2 or arguments.tile < 1:
        raise UserError("--frames must be 2 or more, its first half is compared with its last; --tile 1 or more")
    model = place(load_bundle(arguments.model))
    source = np.stack(list(islice(frames_of(arguments.clip), 60)))  # t H W 3
    clip = there_and_back(_crop(source, arguments.size, model.multiple), arguments.frames)
    table = Table(title=f"{len(clip)} frames, first / last {min(ENDS, len(clip) // 2)}")
    for heading in ("join", "seam", "window", "colour", "contrast", "low-res dB"):
        table.add_column(heading, justify="right")
    rules = PlanRules(overlap=model.sampling.overlap, chain=10**6)  # one chain: drift can build up over the whole clip
    for name, own in {
        "apart": PlanRules(overlap=0),
        **{j: PlanRules(rules.segment, rules.overlap, rules.chain, j) for j in JOINS},
    }.items():
        result = measure(model, clip, own)
        pairs = [_ends(result.frames, key) for key in ("colour", "contrast", "lowres")]
        cells = [f"{first:.2f} / {last:.2f}" for first, last in pairs]
        table.add_row(name, f"{result.seam:.2f}", "" if math.isnan(result.window) else f"{result.window:.2f}", *cells)
    Console().print(table)
    tiled, whole = measure_tiles(
        model, _crop(source, 2 * arguments.size, model.multiple)[:8], arguments.tile, arguments.tile // 2
    )
    Console().print(f"tiles of {arguments.tile}: seam error {tiled:.3f}; the same places without tiles {whole:.3f}")


def _ends(frames: Sequence[Frame], key: str) -> tuple[float, float]:
    values = [getattr(frame, key) for frame in frames]
    count = min(ENDS, len(values) // 2)
    return statistics.fmean(values[:count]), statistics.fmean(values[-count:])


if __name__ == "__main__":
    run_cli(main)
