"""Measure the gain of propagation inside the hole: ``python -m eval.bench.propagation --root CLIPS``.

The reference is the low-res clip without hole, noise and codec. Compared side by side, as PSNR over the low-res pixels
that count as hole:

- ``as it is``: whatever is painted in the hole;
- ``Telea``: OpenCV's inpainting of each frame;
- ``smooth``: :func:`~ldm_video.core.push_pull.push_pull`, a model's input where nothing is known;
- ``propagated``: pixels of other frames where one shows the place, smooth elsewhere.

With ``--model``, also how much of the gain is left after the model, at full size: PSNR inside the hole of
``infer.py --fill model`` with ``--propagate off`` and ``on``.

Inputs are those of the benchmark's tracks with holes, built under ``--work``. A static camera never reveals what is
behind a static hole: such clips show that propagation does no harm, and are left out of the mean gain.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from einops import rearrange
from rich.console import Console
from torch import Tensor

from eval.benchmark import Suite, read_suite
from eval.clips import frames_of
from eval.degradations import shrink
from eval.framewise import to_image, to_pixels
from eval.inputs import BenchmarkInput, Track, build_inputs
from eval.methods import INPAINT_RADIUS
from eval.metrics.fidelity import psnr
from eval.metrics.flow import DisFlow
from ldm_video.config.load import load_config
from ldm_video.core.errors import ArgumentParser, UserError, run_cli
from ldm_video.core.evidence import lay_on_grid
from ldm_video.core.push_pull import push_pull
from ldm_video.core.tensors import size_of
from ldm_video.models.bundle import load_bundle
from ldm_video.models.device import place
from ldm_video.pipeline.composite import dilate
from ldm_video.pipeline.model import RestorationModel
from ldm_video.pipeline.propagation import propagate, reduce_hole, won_share
from ldm_video.pipeline.restore import Restorer, RestoreSettings
from ldm_video.video_io.masks import read_mask

MOVING = 0.5  # pixels per frame of the low-res clip from which a camera counts as moving
SEGMENT = 32  # frames held at once, as in infer.py
DEFAULT_TRACKS = "sd_logo,sd_box,sd_hole"


@dataclass(frozen=True)
class Row:
    """One clip on one track.

    PSNR in dB; ``motion``: median flow in low-res pixels per frame; ``won``: propagated fraction of the hole;
    ``seconds``: CPU seconds of propagation per frame.
    """

    track: str
    clip: str
    motion: float
    paint: float
    telea: float
    smooth: float
    propagated: float
    won: float
    seconds: float
    restored: tuple[float, float] | None = None  # PSNR after the model: without and with propagation

    @property
    def gain(self) -> float:
        return self.propagated - self.smooth

    @property
    def final_gain(self) -> float:
        """Gain after the model, in dB."""
        assert self.restored is not None
        return self.restored[1] - self.restored[0]


def measure(given: BenchmarkInput, track: Track, scale: int, model: RestorationModel | None = None) -> Row:
    """Fill one clip's hole in every way; with a ``model``, also restore the clip without and with propagation."""
    truth = np.stack([shrink(f, scale, track.blur_sigma, 0, np.random.default_rng(0)) for f in frames_of(given.ref)])
    frames = torch.stack([to_pixels(np.round(f * 255).astype(np.uint8)) for f in frames_of(given.lowres)])  # t 3 h w
    large = _read_hole(given, scale, size_of(frames))  # t 1 H W
    hole = lay_on_grid(large, size_of(frames))  # t 1 h w
    started = time.process_time()
    parts = [slice(start, start + SEGMENT) for start in range(0, len(frames), SEGMENT)]
    answers = [propagate(frames[part], hole[part]) for part in parts]
    seconds = (time.process_time() - started) / len(frames)
    filled, confidence = (torch.cat(x) for x in zip(*answers, strict=True))
    propagated_frames, remaining = reduce_hole(frames, large, filled, confidence)
    telea = torch.stack([_telea(frame, mask) for frame, mask in zip(frames, hole, strict=True)])

    def score(pixels: Tensor) -> float:
        return psnr(
            _image(pixels), rearrange(truth, "t h w c -> (t h) w c"), rearrange(hole, "t 1 h w -> (t h) w").numpy()
        )

    smooth = push_pull(frames, 1 - hole)
    propagated = push_pull(propagated_frames, 1 - lay_on_grid(remaining, size_of(frames)))
    return Row(
        track=track.name,
        clip=given.clip,
        motion=_motion(truth),
        paint=score(frames),
        telea=score(telea),
        smooth=score(smooth),
        propagated=score(propagated),
        won=won_share(hole, confidence),
        seconds=seconds,
        restored=None if model is None else _restore_both(model, given, frames, large),
    )


def _restore_both(model: RestorationModel, given: BenchmarkInput, frames: Tensor, hole: Tensor) -> tuple[float, float]:
    """Return the PSNR in dB inside the hole at full size, without and with propagation.

    ``frames``: ``t 3 h w`` in [-1, 1]; ``hole``: ``t 1 H W`` in {0, 1}.
    """
    truth = torch.stack([to_pixels(np.round(f * 255).astype(np.uint8)) for f in frames_of(given.ref)])  # t 3 H W
    mask = rearrange(hole, "t 1 h w -> (t h) w").numpy()

    def score(carry: bool) -> float:
        restore = Restorer(model, RestoreSettings(propagate="on" if carry else "off"))
        parts = [range(start, min(start + SEGMENT, len(frames))) for start in range(0, len(frames), SEGMENT)]
        output = torch.cat([restore(frames[p.start : p.stop], hole[p.start : p.stop], p) for p in parts])  # t 3 H W
        return psnr(_image(output), _image(truth), mask)

    return score(False), score(True)


def table(rows: Sequence[Row]) -> str:
    """Return a Markdown table, then the mean gain by track of clips with a moving and with a static camera."""
    lines = [
        "| track | clip | motion px/frame | as it is | Telea | smooth | propagated | gain dB | of the hole | s/frame |",
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in rows:
        scores = " | ".join(f"{x:.2f}" for x in (r.paint, r.telea, r.smooth, r.propagated))
        lines.append(
            f"| {r.track} | {r.clip} | {r.motion:.2f} | {scores} | {r.gain:+.2f} | {r.won:.0%} | {r.seconds:.3f} |"
        )
    if any(r.restored for r in rows):
        lines += ["", "| track | clip | model alone | model, propagated | gain dB |", "|---|---|--:|--:|--:|"]
        lines += [f"| {r.track} | {r.clip} | {r.restored[0]:.2f} | {r.restored[1]:.2f} | {r.final_gain:+.2f} |"
                  for r in rows if r.restored]  # fmt: skip
    for track in dict.fromkeys(r.track for r in rows):
        for name, moves in (("a moving camera", True), ("a still camera", False)):
            group = [r for r in rows if r.track == track and (r.motion >= MOVING) == moves]
            if group:
                lines.append(f"\n{track}, {len(group)} with {name}: {_mean_and_min([r.gain for r in group])}.")
            if restored := [r.final_gain for r in group if r.restored]:
                lines[-1] = f"{lines[-1][:-1]}; after the model {_mean_and_min(restored)}."
    return "\n".join(lines)


def _mean_and_min(gains: Sequence[float]) -> str:
    return f"{statistics.fmean(gains):+.2f} dB on average, {min(gains):+.2f} dB at least"


def _read_hole(given: BenchmarkInput, scale: int, size: tuple[int, int]) -> Tensor:
    """Return the hole, ``t 1 H W``, dilated by one low-res pixel as in ``infer.py``."""
    if given.mask is None:
        raise UserError(f"{given.clip} has no hole; choose a track that has")
    with read_mask(given.mask, None, (size[0] * scale, size[1] * scale), given.frames) as mask:
        return dilate(torch.stack([mask.at(i) for i in range(given.frames)])[None], scale)[0]


def _telea(frame: Tensor, hole: Tensor) -> Tensor:
    return to_pixels(cv2.inpaint(to_image(frame), hole[0].byte().numpy(), INPAINT_RADIUS, cv2.INPAINT_TELEA))


def _motion(clip: np.ndarray) -> float:
    """Return the length of the median flow, averaged over every third pair of frames."""
    flow = DisFlow()
    medians = [np.median(flow(clip[t], clip[t + 1]), axis=(0, 1)) for t in range(0, len(clip) - 1, 3)]
    return float(np.linalg.norm(medians, axis=1).mean()) if medians else 0.0


def _image(clip: Tensor) -> np.ndarray:
    """Convert ``t 3 h w`` in [-1, 1] to ``(t h) w 3`` in [0, 1]."""
    return rearrange((clip.clamp(-1, 1) + 1) / 2, "t c h w -> (t h) w c").numpy()


def _tracks(suite: Suite, names: str) -> list[Track]:
    holed = {track.name: track for track in suite.tracks if track.hole_area > 0}
    unknown = [name for name in names.split(",") if name not in holed]
    if unknown:
        raise UserError(f"no track {unknown[0]!r} with a drawn hole; the suite has {', '.join(holed)}")
    return [holed[name] for name in names.split(",")]


def main() -> None:
    """Run the command line."""
    parser = ArgumentParser(prog="python -m eval.bench.propagation", description=__doc__.split("\n")[0])
    parser.add_argument("--root", required=True, help="folder of reference clips")
    parser.add_argument("--suite", default="configs/eval/suite.yaml", help="default: %(default)s")
    parser.add_argument("--tracks", default=DEFAULT_TRACKS, help="comma-separated; default: %(default)s")
    parser.add_argument("--work", type=Path, help="folder that keeps the inputs; default: a temporary one")
    parser.add_argument("--model", help="a bundle: measure the gain after the model too")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the suite, as in frames=16")
    args = parser.parse_intermixed_args()
    suite = read_suite(load_config(args.suite, args.overrides))
    model = None if args.model is None else place(load_bundle(args.model))
    if model is None:
        torch.set_num_threads(1)
    rows = []
    with nullcontext(args.work) if args.work else tempfile.TemporaryDirectory() as work:
        for track in _tracks(suite, args.tracks):
            for given in build_inputs(args.root, Path(work), track, suite.scale, suite.seed, suite.frames):
                rows.append(measure(given, track, suite.scale, model))
    Console().print(table(rows), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    run_cli(main)
