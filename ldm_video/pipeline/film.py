"""Restore a clip of many segments through the journal: reading, model and encoding run concurrently."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol

from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.pipeline.parts import Parts
from ldm_video.pipeline.plan import Segment
from ldm_video.pipeline.stream import Piece, RestoreSegment, WriteBehind, read_ahead, read_segments, restore_segment
from ldm_video.pipeline.workers import Share

Timed = Callable[[str], AbstractContextManager[object]]


class Interrupted(KeyboardInterrupt):
    """A signal ended the work. Its arguments include the signal's number and a line that says what is kept."""


class Canvas(Protocol):
    """Puts a restored frame on the canvas of all outputs, see :class:`~ldm_video.pipeline.parts.Parts`."""

    def __call__(self, piece: Piece, output: Tensor) -> Tensor:
        """Map a low-res frame and its output ``3 H W`` to ``3 H W'``, whose last columns are the output."""


def restore_parts(
    parts: Parts,
    todo: Sequence[Segment],
    pieces: Generator[Piece, None, None],
    restore: RestoreSegment,
    canvas: Canvas,
    timed: Timed,
) -> int:
    """Restore and write the segments ``todo``; return how many of them ``pieces`` had the frames for.

    At any moment one segment is being read, one is in the model and one is being encoded.
    """
    before: Segment | None = None
    tail: Tensor | None = None
    done = 0
    with read_ahead(read_segments(pieces, todo)) as ahead, WriteBehind() as behind:
        try:
            for segment, held in zip(todo, ahead, strict=False):
                if segment.follows and before is None:
                    tail = parts.tail_before(segment, held[0].hole.shape[-1])
                with timed("model"):
                    output = restore_segment(segment, held, tail, restore, parts.rules)
                tail = parts.kept_tail(output)
                before = segment if segment.leads else None
                behind.submit(partial(_write, parts, segment, held, output, canvas, timed))
                done += 1
        except BaseException:
            parts.stopped = True
            raise
    return done


def finish_share(parts: Parts, share: Share) -> str:
    """Join the outputs if all parts exist; else return a line that says what is left, and to whom."""
    with parts.journal.alone() as there:
        if not there:
            return f"share {share} is done; another process has put the output together"
        parts.fade_rest()
        at_work, never = parts.journal.others(share)
        if parts.whole() and not never:
            parts.join()
            parts.journal.remove()
            return ""
        left = sum(map(parts.frames_of, parts.unfinished()))
        states = {i: "is at work" for i in at_work} | {i: "has not begun" for i in never}
        for i in {*range(share.count)} - {share.index, *states}:
            if parts.owes(i, share):
                states[i] = "ended before its time"
    others = ", ".join(f"{Share(i, share.count)} {state}" for i, state in sorted(states.items()))
    return f"share {share} is done, {left} frames are left to others ({others}); the last to end joins the output"


@contextmanager
def saying_what_is_kept(parts: Parts) -> Iterator[None]:
    """Add what is kept to a ``UserError`` and to an interruption by a signal."""
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(*stop.args, kept_line(parts)) from stop
    except UserError as error:
        raise type(error)("; ".join(filter(None, (str(error), kept_line(parts))))) from error


def kept_line(parts: Parts) -> str:
    """Return what is kept, to end a line with; empty if nothing is kept, or no longer, as the outputs exist."""
    if not parts.journal.exists:
        return ""
    done, frames = parts.frames_done(), parts.plan[-1].stop
    return f"{done} of {frames} frames are kept in {parts.journal.folder}; the same command resumes" if done else ""


def _write(parts: Parts, segment: Segment, held: list[Piece], output: Tensor, canvas: Canvas, timed: Timed) -> None:
    with timed("encode"):
        canvases = [canvas(piece, pixels) for piece, pixels in zip(held, output, strict=True)]
        parts.finish(segment, canvases, [piece.pts_seconds for piece in held])
