"""Choose the tile and the segment length that keep peak memory below a limit: ``--memory 8GB``.

The peak is modelled as a sum, in bytes, where ``H W`` are the output's pixels and ``h w`` the input's:

- what is resident now: libraries and the loaded model;
- ``frames of a segment * (90 H W + 130 h w)``: evidence, results and their temporaries, the segment being read ahead
  and the one being encoded; more if the sides are padded, and with ``--compare`` or ``join=continue``;
- ``frames of a window * pixels of a tile * cost``: the model's activations, or what the codec takes to finish a tile of
  a segment, whichever is more; both are measured (:mod:`memory_costs`);
- ``150 MB + 500 H W``: demuxer, decoder and encoder, which hold dozens of frames.

The constants were measured with the shipped model and rounded up (docs/films.md has the figures). Kernels' scratch
space and models whose attention is quadratic in space are not covered: for other models the sum is an estimate.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ldm_video.core.errors import UserError
from ldm_video.diffusion.windows import split
from ldm_video.pipeline.job import Job, Role
from ldm_video.pipeline.journal import Journal
from ldm_video.pipeline.memory_costs import LEAVE, Costs, free_memory, held_before_work, measure_costs, round_up
from ldm_video.pipeline.plan import longest_needed
from ldm_video.pipeline.restore import Restorer
from ldm_video.video_io import VideoInfo

UNITS = {"MB": 10**6, "MIB": 2**20, "GB": 10**9, "GIB": 2**30}
_FIXED = 150 * 10**6
_CODEC_BYTES = 500  # bytes per output pixel for the encoders, at preset medium: 110 (ProRes) to 500 (AV1)
_PER_OUTPUT, _PER_INPUT, _PADDED, _COMPARED, _CONTINUED = 90, 130, 32, 36, 40  # bytes per pixel of a segment's frame
_TOLERANCE = 1.02  # resident memory varies between processes and hosts; do not discard kept work for it
_REPORT_STEP = 50 * 10**6  # the reported minimum is a multiple of this: resident memory varies by a few MB


@dataclass(frozen=True)
class Demand:
    """What a job needs.

    Attributes:
        size: (height, width) of the output, padded to the model's multiple.
        window, overlap: in frames.
        segment: maximum of frames held at once; ``least``: minimum; ``frames``: of the clip if that is certain.
        per_frame: bytes per frame of a segment.
        fixed: bytes besides segments and model.
        multiple, tile_overlap: of tiles, in output pixels.
    """

    size: tuple[int, int]
    window: int
    overlap: int
    segment: int
    least: int
    frames: int | None
    per_frame: float
    fixed: float
    multiple: int
    tile_overlap: int

    @property
    def longest(self) -> int:
        """Frames of the longest segment."""
        return min(self.segment, self.frames or self.segment)


@dataclass(frozen=True)
class Choice:
    """``tile``: (height, width) in output pixels or None for whole frames; ``peak``: expected bytes."""

    tile: tuple[int, int] | None
    segment: int
    peak: float


def fit_memory(
    text: str, info: VideoInfo, job: Job, restorer: Restorer, role: Role, environment: Mapping[str, str]
) -> tuple[Job, Restorer, str]:
    """Return ``job`` and ``restorer`` with a segment and a tile that stay below ``text``, and a line that says so.

    Raises ``UserError`` if nothing fits, if a tile was given too, and for ``auto`` with shares of one clip: each
    process would find a different amount free, and choose differently.
    """
    check_memory(text, restorer)
    if text == "auto" and role.share.count > 1:
        raise UserError("--memory auto may differ from process to process; give an amount, such as --memory 8GB")
    limit = free_memory(restorer.device, environment) if text == "auto" else parse_memory(text)
    demand = demand_of(info, job, restorer)
    scale = job.size[0] / info.size[0], job.size[1] / info.size[1]
    costs = measure_costs(restorer, min(demand.window, demand.longest), demand.longest, scale)
    allowed = limit / LEAVE if text == "auto" else limit * _TOLERANCE
    choice = None if role.restart else kept_choice(job.output, allowed, costs, demand)
    choice = choice or choose(limit, costs, demand)
    job = replace(job, rules=replace(job.rules, segment=choice.segment))
    fitted = restorer.with_settings(tile=choice.tile)
    tile = "whole frames" if choice.tile is None else "tile {}x{}".format(*choice.tile)
    line = (
        f"memory: about {in_words(choice.peak)} of {in_words(limit)} with {tile}, segments of {choice.segment} frames"
    )
    return job, fitted, line


def is_too_large(info: VideoInfo, job: Job, restorer: Restorer, environment: Mapping[str, str]) -> bool:
    """Return whether segments alone, without the model's activations, need more than what is free.

    On a CPU, the system would then kill the process, hours later and without a message. False on a GPU, which reports
    full memory itself, if a tile was given, and if free memory is unknown.
    """
    if restorer.device.type != "cpu" or restorer.settings.tile is not None:
        return False
    demand = demand_of(info, job, restorer)
    try:
        free = free_memory(restorer.device, environment)
    except UserError:
        return False
    return held_before_work(restorer.device) + demand.fixed + demand.per_frame * demand.longest > free


def check_memory(text: str, restorer: Restorer) -> None:
    """Raise ``UserError`` for an invalid amount, and if a tile was given too."""
    if restorer.settings.tile is not None:
        raise UserError("--memory chooses the tile: leave --tile out, or --memory")
    if text != "auto":
        parse_memory(text)


def parse_memory(text: str) -> int:
    """Convert ``8GB``, ``7.5 GiB`` or ``900MB`` to bytes. Raises ``UserError`` for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG]i?B)", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise UserError(f"--memory {text} is not an amount such as 8GB, 7.5GiB or 900MB, nor auto")
    return int(float(found[1]) * UNITS[found[2].upper()])


def in_words(amount: float) -> str:
    """Format bytes as ``1.35GB`` or ``900MB``, which :func:`parse_memory` reads."""
    return f"{amount / 1e9:.2f}GB" if amount >= 1e9 else f"{amount / 1e6:.0f}MB"


def choose(limit: int, costs: Costs, demand: Demand) -> Choice:
    """Return the choice with the least work that stays below ``limit``.

    Work is the number of pixels that the model sees: shared frames and tile overlaps are seen more than once. Raises
    ``UserError`` with the smallest limit that would do.
    """
    best: tuple[float, Choice] | None = None
    least = float("inf")
    for segment in range(demand.segment, demand.least - 1, -1):
        for tile in tile_sizes(demand):
            peak = expected_peak(costs, demand, segment, tile)
            least = min(least, peak)
            if peak > limit:
                continue
            work = segment / (segment - demand.overlap) * _coverage(demand, tile)
            if best is None or work < best[0]:
                best = work, Choice(tile, segment, peak)
    if best is None:
        needed = (int(least) // _REPORT_STEP + 2) * _REPORT_STEP
        height, width = demand.size
        raise UserError(
            f"--memory {in_words(limit)} is too little for {width}x{height} with this model; "
            f"the least is --memory {in_words(needed)}"
        )
    return best[1]


def expected_peak(costs: Costs, demand: Demand, segment: int, tile: tuple[int, int] | None) -> float:
    """Return the peak in bytes, by the sum in this module's docstring."""
    pixels = demand.size[0] * demand.size[1]
    frames = segment if demand.frames is None else min(segment, demand.frames)
    part = pixels if tile is None else min(tile[0], demand.size[0]) * min(tile[1], demand.size[1])
    seen = min(demand.window, frames) * part
    decoded = seen if costs.at_once is None else min(seen, max(part, costs.at_once))
    encoded = frames * pixels if costs.at_once is None else min(frames * pixels, max(pixels, costs.at_once))
    work = max(costs.sample * seen, costs.decode * decoded, costs.finish * part, costs.encode * encoded)
    return costs.base + demand.fixed + demand.per_frame * frames + work


def tile_sizes(demand: Demand) -> Iterator[tuple[int, int] | None]:
    """Yield None for whole frames, then the smallest tile for every number of rows and columns.

    No side is less than twice the overlap: below that most of the work is done twice.
    """
    rows, columns = (_sides(side, demand) for side in demand.size)
    for height in rows:
        for width in columns:
            whole = height >= demand.size[0] and width >= demand.size[1]
            yield None if whole else (height, width)


def demand_of(info: VideoInfo, job: Job, restorer: Restorer) -> Demand:
    """Return what ``job`` needs with ``restorer``'s settings."""
    settings, multiple = restorer.settings, restorer.model.multiple
    height, width = (side + -side % multiple for side in job.size)
    output, source = height * width, info.size[0] * info.size[1]
    extra = (
        _PADDED * ((height, width) != job.size)
        + _COMPARED * (job.compare is not None)
        + _CONTINUED * (job.rules.join == "continue")
    )
    on_cpu = restorer.device.type == "cpu"
    return Demand(
        size=(height, width),
        window=settings.window,
        overlap=job.rules.overlap,
        segment=job.rules.segment,
        least=min(job.rules.segment, max(settings.window, longest_needed(job.rules.overlap))),
        frames=None if info.kind == "video" else info.frames,
        per_frame=(_PER_OUTPUT + extra) * output + _PER_INPUT * source,
        fixed=_FIXED + _CODEC_BYTES * output * (3 if job.compare is not None else 1) if on_cpu else 0,
        multiple=multiple,
        tile_overlap=settings.tile_overlap,
    )


def kept_choice(output: Path, allowed: float, costs: Costs, demand: Demand) -> Choice | None:
    """Return the choice of an earlier run, or of another share, whose work is kept for ``output``.

    Only the same choice can resume that work. None if there is none, if it is not valid now, or if it needs more bytes
    than ``allowed``.
    """
    try:
        identity = Journal(output).identity()
        tile = None if identity["tile"] is None else (int(identity["tile"][0]), int(identity["tile"][1]))
        segment = int(identity["segments: segment"])
    except (ValueError, KeyError, TypeError):
        return None
    if not demand.least <= segment <= demand.segment or not all(_is_valid_side(side, demand) for side in tile or ()):
        return None  # another command's work
    choice = Choice(tile, segment, expected_peak(costs, demand, segment, tile))
    return choice if choice.peak <= allowed else None


def _is_valid_side(side: int, demand: Demand) -> bool:
    return side % demand.multiple == 0 and side >= _min_side(demand)


def _min_side(demand: Demand) -> int:
    return max(demand.multiple, round_up(2 * demand.tile_overlap, demand.multiple))


def _sides(length: int, demand: Demand) -> list[int]:
    floor = _min_side(demand)
    sides, count = [length], 1
    while sides[-1] > floor:
        count += 1
        side = round_up(-(-(length + (count - 1) * demand.tile_overlap) // count), demand.multiple)
        sides.append(max(floor, side))
    return sides


def _coverage(demand: Demand, tile: tuple[int, int] | None) -> float:
    """Return how often a pixel is seen on average, because of overlapping tiles: 1 for whole frames."""
    if tile is None:
        return 1.0
    share = 1.0
    for length, side in zip(demand.size, tile, strict=True):
        share *= sum(window.size for window in split(length, side, min(demand.tile_overlap, side - 1))) / length
    return share
