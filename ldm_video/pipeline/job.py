"""Restore one clip from file to file: what ``infer.py`` runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import torch
from torch import Tensor

import ldm_video
from ldm_video.core.errors import UserError
from ldm_video.core.evidence import resize
from ldm_video.core.files import Taken, hash_files
from ldm_video.core.tensors import size_of
from ldm_video.pipeline.film import finish_share, restore_parts, saying_what_is_kept
from ldm_video.pipeline.journal import Journal, Survey, file_facts, hash_tensors
from ldm_video.pipeline.parts import Parts
from ldm_video.pipeline.plan import PlanRules, Segment, make_plan
from ldm_video.pipeline.restore import Restorer
from ldm_video.pipeline.sizes import scale_box
from ldm_video.pipeline.stream import Piece, RestoreSegment, explain_memory, restore_segment
from ldm_video.pipeline.survey import count_frames, take_survey
from ldm_video.pipeline.workers import Share
from ldm_video.video_io import FrameReader, MaskSource, VideoInfo, VideoWriter, probe, read_mask
from ldm_video.video_io.masks import fill_boxes
from ldm_video.video_io.probe import DEFAULT_RATE
from ldm_video.video_io.reader import Deinterlace
from ldm_video.video_io.stills import is_image


@dataclass(frozen=True)
class Job:
    """Where a clip comes from and goes to.

    Attributes:
        source, output: see :class:`~ldm_video.video_io.FrameReader` and :class:`~ldm_video.video_io.VideoWriter`.
        size: (height, width) of the output.
        mask: image, folder or video, white = fill; boxes: ``x, y, w, h`` in pixels of the source.
        rules: how the clip is split into segments.
        find_cuts: detect cuts, so that nothing of one shot affects the next.
        encoding: ``codec``, ``crf`` and ``preset`` of the writer.
        compare: path of a second output, the resized input beside the result; None for none.
    """

    source: Path
    output: Path
    size: tuple[int, int]
    mask: Path | None = None
    boxes: Sequence[tuple[int, int, int, int]] = ()
    deinterlace: Deinterlace = "auto"
    rules: PlanRules = PlanRules()  # noqa: RUF009 (frozen)
    find_cuts: bool = True
    encoding: dict[str, Any] = field(default_factory=dict)
    compare: Path | None = None
    overwrite: bool = False


@dataclass(frozen=True)
class Role:
    """The role of this process in a job, and the files of its model.

    Attributes:
        share: of the clip's chains.
        restart: begin anew whatever is kept.
        model: the files of the model, which tell work kept from another model apart; variant: which of them.
        lora: those of the adapter that is merged into it, and its scale.
    """

    share: Share = Share()  # noqa: RUF009 (frozen)
    restart: bool = False
    model: Path | None = None
    lora: tuple[Path, float] | None = None
    variant: str | None = None


@dataclass(frozen=True)
class Watch:
    """Callbacks for progress, messages and timing.

    Attributes:
        progress: ``progress(what, frames, total)``: frames done, possibly fractional, of ``total`` if known.
        say: show the user a line now.
        timed: ``with timed(name)`` around ``decode``, ``model`` and ``encode``, each in its own thread.
    """

    progress: Callable[[str, float, int | None], None] = lambda *_: None
    say: Callable[[str], None] = lambda line: None
    timed: Callable[[str], AbstractContextManager[object]] = lambda name: nullcontext()


@dataclass
class Outcome:
    """Result of a job. ``frames``: restored in this run, by this process.

    ``pending``: a line that says what is left to other processes; empty once the outputs exist.
    """

    frames: int
    seconds: float
    warnings: list[str]
    pending: str = ""


def run_job(job: Job, restorer: Restorer, watch: Watch = Watch(), role: Role = Role()) -> Outcome:
    """Restore the clip. The outputs appear under their names once they are complete.

    A clip of more than one segment is kept part by part in a :class:`~ldm_video.pipeline.journal.Journal`; of two
    processes doing the same work, one is refused. Outputs that appear in the meantime stay unless they may be
    overwritten. Raises ``UserError``, and ``Interrupted`` for a signal; both say what is kept.
    """
    started = time.monotonic()
    info, journal = probe(job.source), Journal(job.output)
    open_mask(job, info).close()
    journal.clear()
    identity = identify(job, restorer, role) if journal.exists else None  # slow: it reads the model's files
    # An output whose journal is discarded no longer counts as this job's: refuse before discarding anything.
    for writer in open_writers(job, info, joining=_may_replace(job, journal, identity) and not role.restart):
        writer.rehearse()
    if role.restart and journal.exists:
        journal.discard()
    survey = None if identity is None else journal.survey(identity)
    if survey is None:
        survey = _survey(job, info, watch)
    plan = make_plan(survey.frames, survey.cuts, job.rules)
    whole = len(plan) == 1
    if whole and role.share.index > 0:
        pending = f"share {role.share} has nothing to do: the clip is one segment"
        return Outcome(0, time.monotonic() - started, [*survey.warnings], pending)
    if not whole:
        identity = identity or identify(job, restorer, role)
    with journal.hold(identity, None if whole else survey, role.share) as reason:
        if reason:
            watch.say(f"{journal.folder} holds work of a different command ({reason} differs): starting over")
        # Check again: another process may have finished in the meantime.
        writers = open_writers(job, info, joining=_may_replace(job, journal, identity))
        if whole:
            frames, pending = _restore_whole(job, restorer, watch, plan[0], writers), ""
        else:
            parts = Parts(journal, plan, job.rules, part_writers(job, writers))
            frames, pending = _restore_share(job, restorer, watch, role.share, parts)
    return Outcome(frames, time.monotonic() - started, [*survey.warnings, *writers[0].warnings], pending)


def _may_replace(job: Job, journal: Journal, identity: Mapping[str, Any] | None) -> bool:
    """Return whether existing outputs are this job's own, from a run killed while putting them in place.

    Raises ``Taken`` if that was another job: then the output is finished, or its command's to finish.
    """
    joins = identity is not None and journal.joins(identity)
    if journal.joining and not joins and not job.overwrite and job.output.exists():
        raise Taken(
            f"{job.output} exists already, and what is kept in {journal.folder} is another command's; "
            "pass --overwrite or choose another output"
        )
    return joins


def _survey(job: Job, info: VideoInfo, watch: Watch) -> Survey:
    with open_mask(job, info) as mask:
        survey = take_survey(
            info, mask, lambda frames: watch.progress("looking for cuts", frames, info.frames), job.find_cuts
        )
    if survey.frames > 1 and is_image(job.output):
        raise UserError(f"{job.output} is an image and holds one frame; give a folder or a video file")
    return survey


def _restore_whole(job: Job, restorer: Restorer, watch: Watch, segment: Segment, writers: Sequence[VideoWriter]) -> int:
    """Restore a clip of one segment straight into its outputs; return the number of frames."""
    with ExitStack() as stack:
        # The last one opened is closed first: a comparison never appears without its result.
        for opened in reversed(writers):
            stack.enter_context(opened)
        pieces = list(read_pieces(job, [segment], watch))
        if len(pieces) < segment.stop:
            raise _ended_early(job, len(pieces), segment.stop)
        restore = _reporting(restorer, watch, [segment.stop], segment.stop)
        with watch.timed("model"):
            output = restore_segment(segment, pieces, None, restore, job.rules)
        for piece, pixels in zip(pieces, output, strict=True):
            with watch.timed("encode"):
                writers[0].write(pixels, piece.pts_seconds)
                for compare in writers[1:]:
                    compare.write(side_by_side(piece.pixels, pixels), piece.pts_seconds)
        for writer in writers:  # all outputs, or none
            writer.check_free()
    return segment.stop


def _restore_share(job: Job, restorer: Restorer, watch: Watch, share: Share, parts: Parts) -> tuple[int, str]:
    """Restore this process's segments into parts, and join the outputs if those were the last.

    Returns the number of frames restored, and a line that says what is left to others.
    """
    with saying_what_is_kept(parts):
        frames, kept, todo = parts.plan[-1].stop, parts.frames_done(), parts.to_do(share)
        if kept:
            watch.say(f"going on: {kept} of {frames} frames are kept in {parts.journal.folder}")
        sizes = [parts.frames_of(segment) for segment in todo]
        restore = _reporting(restorer, watch, sizes, frames, kept)
        canvas = _comparison_canvas if job.compare is not None else _result_canvas
        pieces = read_pieces(job, todo, watch, lambda: parts.stopped)
        done = restore_parts(parts, todo, pieces, restore, canvas, watch.timed)
        if done < len(todo):
            raise _ended_early(job, todo[done].start, frames)
        watch.progress("joining", frames, frames)
        return sum(sizes), finish_share(parts, share)


class Stopped(Exception):
    """Raised while reading frames that are no longer wanted."""


def read_pieces(
    job: Job, segments: Sequence[Segment], watch: Watch, stopped: Callable[[], bool] = lambda: False
) -> Generator[Piece, None, None]:
    """Yield the frames of ``segments``, each once and in order; others are decoded and skipped.

    ``stopped`` is polled at every frame, since hours of film may be skipped; once it returns True, ``Stopped`` is
    raised.
    """
    if not segments:
        return
    last = max(segment.stop for segment in segments)
    needed = bytearray(last)
    for segment in segments:
        needed[segment.start : segment.stop] = b"\1" * (segment.stop - segment.start)

    def wanted(index: int) -> bool:
        if stopped():
            raise Stopped
        return bool(needed[index])

    with (
        FrameReader(job.source, job.deinterlace, stop=last, wanted=wanted) as reader,
        open_mask(job, reader.info) as mask,
    ):
        while True:
            with watch.timed("decode"):
                frame = next(reader, None)
                if frame is None:
                    return
                piece = Piece(frame.pixels, mask.at(frame.index), frame.index, frame.pts_seconds)
            yield piece


def identify(job: Job, restorer: Restorer, role: Role) -> dict[str, Any]:
    """Return everything that affects a pixel or its encoding, by name."""
    return {
        "input": file_facts(job.source),
        "mask": file_facts(job.mask),
        "box": [list(box) for box in job.boxes],
        "size": list(job.size),
        "deinterlace": job.deinterlace,
        "cuts": job.find_cuts,
        "output": job.output.suffix,
        "compare": job.compare is not None,
        **{f"encoding: {key}": value for key, value in job.encoding.items()},
        **{f"segments: {key}": value for key, value in asdict(job.rules).items()},
        **asdict(restorer.settings),
        "prompt": None if restorer.text is None else hash_tensors(restorer.text),
        "prompt_file": None if restorer.prompts is None else asdict(restorer.prompts),
        "device": restorer.device.type,
        "dtype": str(restorer.dtype),
        "model": hash_files(role.model) if role.model is not None and role.model.exists() else str(role.model),
        "variant": role.variant,
        "lora": None if role.lora is None else [hash_files(role.lora[0]), role.lora[1]],
        "software": f"ldm-video {ldm_video.__version__}, torch {torch.__version__}, PyAV {av.__version__}",
    }


def part_writers(job: Job, writers: Sequence[VideoWriter]) -> dict[str, tuple[VideoWriter, slice]]:
    """Map names to writers and their columns of the canvas: the comparison if there is one, else the result."""
    width = job.size[1]
    if job.compare is None:
        return {"result": (writers[0], slice(0, width))}
    return {"result": (writers[0], slice(width, 2 * width)), "compare": (writers[1], slice(0, 2 * width))}


def _reporting(restorer: Restorer, watch: Watch, sizes: Sequence[int], total: int, kept: int = 0) -> RestoreSegment:
    """Wrap ``restorer`` to report progress from ``kept`` of ``total`` frames; each call does the next of ``sizes``."""
    coming = iter(sizes)
    reached = kept

    def restore(
        frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None
    ) -> Tensor:
        nonlocal reached
        start, size = reached, next(coming)
        reached += size

        def report(share: float) -> None:
            watch.progress("restoring", start + share * size, total)

        return explain_memory(lambda: restorer(frames, hole, indices, report, before, shown))

    return restore


def _ended_early(job: Job, frame: int, frames: int) -> UserError:
    return UserError(f"{job.source} ended at frame {frame} of {frames}; check that the file is complete")


def open_mask(job: Job, info: VideoInfo) -> MaskSource:
    """Open the hole on the output's grid; boxes are given on the source's."""
    fill_boxes(job.boxes, info.size)  # refuses a box outside the frame in the coordinates as given
    boxes = [scale_box(box, info.size, job.size) for box in job.boxes]
    return read_mask(job.mask, boxes or None, job.size, info.frames, lambda: count_frames(info))


def open_writers(job: Job, info: VideoInfo, joining: bool = False, sound: bool = True) -> list[VideoWriter]:
    """Create the result's writer and, if requested, the comparison's. ``UserError`` if one is the input or mask.

    ``joining``: existing outputs are this job's own, from a run killed while putting them in place.
    ``sound``: copy the source's audio and subtitles, and keep its clock.
    """
    overwrite = job.overwrite or joining
    rate = info.rate or DEFAULT_RATE
    for target in filter(None, (job.output, job.compare)):
        for name, given in (("input", job.source), ("mask", job.mask)):
            if given is not None and target.exists() and target.resolve() == given.resolve():
                raise UserError(f"{target} is the {name}; choose another output")
    source = info if sound else None
    writers = [VideoWriter(job.output, job.size, source, rate, overwrite=overwrite, **job.encoding)]
    if job.compare is not None:
        wide = (job.size[0], 2 * job.size[1])
        writers.append(VideoWriter(job.compare, wide, source, rate, overwrite=overwrite, **job.encoding))
    return writers


def side_by_side(lowres: Tensor, output: Tensor) -> Tensor:
    """Resize ``3 h w`` and put it to the left of ``output`` ``3 H W``: ``3 H 2W``."""
    return torch.cat([resize(lowres, size_of(output)), output], dim=-1)


def _comparison_canvas(piece: Piece, output: Tensor) -> Tensor:
    return side_by_side(piece.pixels, output)


def _result_canvas(piece: Piece, output: Tensor) -> Tensor:
    return output
