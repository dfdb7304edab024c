"""One clip from file to file: what ``infer.py`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.evidence import resize
from ldm_video.pipeline.restore import Restorer
from ldm_video.pipeline.sizes import scale_box
from ldm_video.pipeline.stream import Piece, restore_stream
from ldm_video.video_io import FrameReader, MaskSource, VideoInfo, VideoWriter, read_mask
from ldm_video.video_io.masks import fill_boxes
from ldm_video.video_io.probe import DEFAULT_RATE
from ldm_video.video_io.reader import Deinterlace

Progress = Callable[[float], None]
"""``progress(frames)``: how many frames are done, in fractions."""


@dataclass(frozen=True)
class Job:
    """Where a clip comes from and goes to.

    Attributes:
        source, output: see :class:`~ldm_video.video_io.FrameReader` and :class:`~ldm_video.video_io.VideoWriter`.
        size: (height, width) of the output.
        mask: image, folder or video, white = fill; boxes: ``x, y, w, h`` in pixels of the source.
        segment, overlap: frames restored at once, and shared by neighbours, see
            :func:`~ldm_video.pipeline.stream.restore_stream`.
        encoding: ``codec``, ``crf`` and ``preset`` of the writer.
        compare: a second output, the resized input beside the result; None for none.
    """

    source: Path
    output: Path
    size: tuple[int, int]
    mask: Path | None = None
    boxes: Sequence[tuple[int, int, int, int]] = ()
    deinterlace: Deinterlace = "auto"
    segment: int = 32
    overlap: int = 4
    encoding: dict[str, Any] = field(default_factory=dict)
    compare: Path | None = None
    overwrite: bool = False


@dataclass
class Outcome:
    """What a job did."""

    frames: int
    seconds: float
    warnings: list[str]


def run_job(job: Job, restorer: Restorer, progress: Progress) -> Outcome:
    """Restore the clip. The outputs appear under their names once they are whole."""
    started = time.monotonic()
    with ExitStack() as stack:
        reader = stack.enter_context(FrameReader(job.source, deinterlace=job.deinterlace))
        mask = stack.enter_context(open_mask(job, reader.info))
        # The last to be opened is the first to be closed: no comparison without a result.
        writers = open_writers(job, reader.info)
        for opened in reversed(writers):
            stack.enter_context(opened)
        times: dict[int, Fraction] = {}
        frames = reached = 0  # written; taken in by the segments so far

        def restore(pixels: Tensor, hole: Tensor, indices: list[int]) -> Tensor:
            nonlocal reached
            before, reached = reached, indices[-1] + 1

            def report(share: float) -> None:
                progress(before + share * (reached - before))

            return _explain_memory(lambda: restorer(pixels, hole, indices, report))

        pieces = _pieces(reader, mask, times)
        for piece, pixels in restore_stream(pieces, restore, job.segment, job.overlap):
            pts = times.pop(piece.index)
            writers[0].write(pixels, pts)
            for compare in writers[1:]:
                compare.write(side_by_side(piece.pixels, pixels), pts)
            frames += 1
        mask.finish(frames)
    warnings = [*reader.warnings, *(w for writer in writers[:1] for w in writer.warnings)]
    return Outcome(frames, time.monotonic() - started, warnings)


def open_mask(job: Job, info: VideoInfo) -> MaskSource:
    """The hole on the output's grid; boxes are given on the source's."""
    fill_boxes(job.boxes, info.size)  # refuses a box outside the frame in the numbers that it was given in
    boxes = [scale_box(box, info.size, job.size) for box in job.boxes]
    return read_mask(job.mask, boxes or None, job.size, info.frames)


def open_writers(job: Job, info: VideoInfo) -> list[VideoWriter]:
    """The result's writer and, where it is asked for, the comparison's."""
    rate = info.rate or DEFAULT_RATE
    for target in filter(None, (job.output, job.compare)):
        for name, given in (("input", job.source), ("mask", job.mask)):
            if given is not None and target.exists() and target.resolve() == given.resolve():
                raise UserError(f"{target} is the {name}; choose another output")
    writers = [VideoWriter(job.output, job.size, info, rate, overwrite=job.overwrite, **job.encoding)]
    if job.compare is not None:
        wide = (job.size[0], 2 * job.size[1])
        writers.append(VideoWriter(job.compare, wide, info, rate, overwrite=job.overwrite, **job.encoding))
    return writers


def side_by_side(lowres: Tensor, output: Tensor) -> Tensor:
    """``3 h w`` resized to ``3 H W``, beside ``3 H W``: ``3 H 2W``."""
    height, width = output.shape[-2:]
    return torch.cat([resize(lowres[None, None], (height, width))[0, 0], output], dim=-1)


def compare_path(output: Path) -> Path:
    """``hd.mp4 -> hd_compare.mp4``."""
    return output.with_name(f"{output.stem}_compare{output.suffix}")


def _pieces(reader: FrameReader, mask: MaskSource, times: dict[int, Fraction]) -> Iterator[Piece]:
    for frame in reader:
        times[frame.index] = frame.pts_seconds
        yield Piece(frame.pixels, mask.at(frame.index), frame.index)


def _explain_memory(run: Callable[[], Tensor]) -> Tensor:
    try:
        return run()
    except torch.OutOfMemoryError as error:
        raise UserError("the GPU's memory is full; use --tile 512x512, segment=16 or a smaller --window") from error
    except RuntimeError as error:
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise UserError(
                "the machine's memory is full; use --tile 512x512, segment=16 or a smaller --window"
            ) from error
        raise
