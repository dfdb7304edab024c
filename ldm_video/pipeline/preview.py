"""A preview in less than a tenth of the time: short runs of frames, spread over the clip, at few steps."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from itertools import pairwise

import torch

from ldm_video.pipeline.cuts import CutDetector
from ldm_video.pipeline.job import (
    Job,
    Outcome,
    Watch,
    open_mask,
    open_writers,
    read_pieces,
    side_by_side,
)
from ldm_video.pipeline.plan import Segment
from ldm_video.pipeline.restore import Restorer
from ldm_video.pipeline.stream import Piece, explain_memory, read_segments
from ldm_video.pipeline.survey import count_frames
from ldm_video.video_io import DEFAULT_RATE, VideoInfo, probe

FEW_STEPS = 8
"""Maximum for a model whose own default is more."""

_PART = 10  # a preview has at most one in this many of the clip's frames
_MOST_RUNS = 10


def run_preview(job: Job, restorer: Restorer, watch: Watch) -> Outcome:
    """Restore a few runs of frames, one after the other, into one output without audio.

    A run lasts about a second, so that flicker shows; frames have the same noise as in the whole clip.
    """
    started = time.monotonic()
    info = probe(job.source)
    open_mask(job, info).close()
    writers = open_writers(job, info, sound=False)
    for writer in writers:
        writer.rehearse()
    # Duration and rate promise frames that are not there, of a film whose last picture stands: those are counted.
    frames = count_frames(info) or 1 if info.frames is None else info.frames
    runs = choose_runs(frames, run_length(info, job, restorer), restorer.settings.window)
    total, done = sum(map(len, runs)), 0
    segments = [_segment(number, run) for number, run in enumerate(runs)]
    with ExitStack() as stack:
        for opened in reversed(writers):
            stack.enter_context(opened)
        pieces = stack.enter_context(closing(read_pieces(job, segments, watch)))
        for run in read_segments(pieces, segments, partial=True):
            for shot in shots(run) if job.find_cuts else [run]:
                output = _restore(restorer, shot, watch, done, total)
                for piece, pixels in zip(shot, output, strict=True):
                    writers[0].write(pixels)
                    for compare in writers[1:]:
                        compare.write(side_by_side(piece.pixels, pixels))
                done += len(shot)
    return Outcome(done, time.monotonic() - started, list(writers[0].warnings))


def choose_runs(frames: int, length: int, window: int) -> list[range]:
    """Return at most ten runs of ``length`` frames, a tenth of the clip in total, centred in equal parts of it.

    A clip that is too short for two has one run at its start; none is shorter than ``window`` unless the clip is.
    """
    budget = frames // _PART
    length = min(max(min(length, budget), window), frames)
    count = min(max(1, budget // length), _MOST_RUNS)
    if count == 1:
        return [range(length)]
    starts = [(2 * i + 1) * frames // (2 * count) - length // 2 for i in range(count)]
    return [range(start, start + length) for start in starts]


def run_length(info: VideoInfo, job: Job, restorer: Restorer) -> int:
    """Return the frames in a second, but at least the model's window and at most a segment."""
    return min(max(round(info.rate or DEFAULT_RATE), restorer.settings.window), job.rules.segment)


def shots(run: Sequence[Piece]) -> Iterator[list[Piece]]:
    """Split ``run`` at cuts, so that nothing of one shot affects the next, as in the whole clip."""
    detector = CutDetector()
    found = [*(detector.push(piece.pixels, piece.hole) for piece in run), detector.finish()]
    borders = [0, *(cut for cut in found if cut is not None), len(run)]
    return (list(run[start:stop]) for start, stop in pairwise(borders))


def _restore(restorer: Restorer, shot: Sequence[Piece], watch: Watch, done: int, total: int) -> torch.Tensor:
    """Restore one shot: ``t 3 H W`` in [-1, 1]."""
    frames, holes = (torch.stack([getattr(piece, name) for piece in shot]) for name in ("pixels", "hole"))
    indices = [piece.index for piece in shot]

    def report(share: float) -> None:
        watch.progress("restoring", done + share * len(shot), total)

    with watch.timed("model"):
        return explain_memory(lambda: restorer(frames, holes, indices, report))


def _segment(number: int, run: range) -> Segment:
    alone = {name: False for name in ("follows", "leads", "fades_in", "fades_out")}
    return Segment(number, number, run.start, run.stop, run.start, run.stop, **alone)
