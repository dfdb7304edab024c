"""Write restored segments to parts on disk, and join the parts into the outputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.core.files import Taken
from ldm_video.pipeline.journal import Journal, in_levels
from ldm_video.pipeline.plan import PlanRules, Segment
from ldm_video.pipeline.stream import cross_fade
from ldm_video.pipeline.workers import Share
from ldm_video.video_io import VideoWriter


class Parts:
    """The parts of one clip's outputs.

    A *canvas* is a frame for all outputs, side by side: each writer takes its own columns. Cross-fades, and the frames
    kept for them, are canvases.

    Args:
        writers: part name -> writer and its columns of the canvas; the result first.
    """

    def __init__(
        self,
        journal: Journal,
        plan: Sequence[Segment],
        rules: PlanRules,
        writers: dict[str, tuple[VideoWriter, slice]],
    ) -> None:
        self.journal, self.plan, self.rules = journal, plan, rules
        self.stopped = False  # set from another thread to abandon what is being written
        self._writers = writers

    def done(self, segment: Segment) -> bool:
        return all(self._part(segment.number, name).exists() for name in self._writers)

    def frames_done(self) -> int:
        return sum(self.frames_of(segment) for segment in self.plan if self.done(segment))

    def frames_of(self, segment: Segment) -> int:
        """Return how many of the clip's frames this segment counts for: its part, and the cross-fade after it."""
        return segment.last - segment.first + self.rules.overlap * segment.fades_out

    def unfinished(self) -> list[Segment]:
        return [segment for segment in self.plan if not self.done(segment)]

    def whole(self) -> bool:
        """Return whether all parts exist, including cross-fades."""
        return not self.unfinished() and all(
            self._part(segment.number, f"fade.{name}").exists()
            for segment in self.plan
            if segment.fades_in
            for name in self._writers
        )

    def to_do(self, share: Share) -> list[Segment]:
        """Return the segments that ``share`` has to restore, in order.

        For each of its chains: everything from the first missing part on, or from further back if the outputs that it
        would follow are gone.
        """
        todo: list[Segment] = []
        for chain, members in groupby(self.plan, lambda segment: segment.chain):
            if not share.owns(chain):
                continue
            run = list(members)
            first = next((i for i, segment in enumerate(run) if not self.done(segment)), None)
            while first and not self.journal.file(run[first - 1].number, "tail").exists() and self.rules.overlap:
                first -= 1
            todo += [] if first is None else run[first:]
        return todo

    def owes(self, index: int, share: Share) -> bool:
        """Return whether share ``index``, of as many shares as ``share``, has work left."""
        return any(Share(index, share.count).owns(segment.chain) for segment in self.unfinished())

    def tail_before(self, segment: Segment, width: int) -> Tensor | None:
        """Return the last outputs of the previous segment, ``overlap 3 H width``; None without an overlap."""
        return self.journal.frames(segment.number - 1, "tail")[0][..., -width:] if self.rules.overlap else None

    def kept_tail(self, output: Tensor) -> Tensor | None:
        """Return the last frames of ``output`` as read back from disk, so that an interruption changes nothing."""
        return in_levels(output[-self.rules.overlap :]) if self.rules.overlap else None

    def finish(self, segment: Segment, canvases: Sequence[Tensor], times: Sequence[Fraction]) -> None:
        """Write the part of ``segment``, preceded by what its neighbours need.

        Args:
            canvases: ``3 H W`` for each frame of the segment.
            times: presentation times of the same frames, in seconds.
        """
        overlap = self.rules.overlap
        if segment.fades_in:
            self._keep(segment, "head", canvases[:overlap], times[:overlap])
        if overlap and (segment.leads or segment.fades_out):
            self._keep(segment, "tail", canvases[-overlap:], times[-overlap:])
        chosen = slice(segment.first - segment.start, segment.last - segment.start)
        for name in reversed(self._writers):
            self._write(self._part(segment.number, name), name, canvases[chosen], times[chosen])
        if segment.follows:
            self.journal.drop(segment.number - 1, "tail")
        if segment.fades_in:
            self._fade(self.plan[segment.number - 1], segment)
        if segment.fades_out:
            self._fade(segment, self.plan[segment.number + 1])

    def fade_rest(self) -> None:
        """Write the cross-fades that two processes left to each other."""
        for segment in self.plan:
            if segment.fades_in:
                self._fade(self.plan[segment.number - 1], segment)

    def join(self) -> None:
        """Join the parts into the outputs, without re-encoding."""
        joining = self.journal.folder / "joining"
        if joining.exists():  # a process was killed while joining: outputs that exist are of these parts
            for writer, _ in self._writers.values():
                writer.overwrite = True
        joining.touch()
        with ExitStack() as stack:
            # The last one opened is closed first: a comparison never appears without its result.
            for number, (name, (writer, _)) in reversed([*enumerate(self._writers.items())]):
                if number == 0:  # for the result only, not for the comparison, which comes after it
                    stack.enter_context(_removed_if_taken(joining))
                stack.enter_context(writer).join(list(self._in_order(name)))
            for writer, _ in self._writers.values():  # all outputs, or none
                writer.check_free()

    def _in_order(self, name: str) -> list[Path]:
        files = []
        for segment in self.plan:
            files += [self._part(segment.number, f"fade.{name}")] if segment.fades_in else []
            files.append(self._part(segment.number, name))
        return files

    def _fade(self, before: Segment, after: Segment) -> None:
        """Cross-fade two chains, once both sides exist.

        Another process may be doing the same now, then join the outputs and remove the folder.
        """
        try:
            tail, times = self.journal.frames(before.number, "tail")
            head, _ = self.journal.frames(after.number, "head")
            for name in reversed(self._writers):
                self._write(self._part(after.number, f"fade.{name}"), name, list(cross_fade(tail, head)), times)
        except FileNotFoundError:
            return
        except UserError:
            if self.journal.exists:
                raise
            return
        self.journal.drop(before.number, "tail")
        self.journal.drop(after.number, "head")

    def _keep(self, segment: Segment, kind: str, canvases: Sequence[Tensor], times: Sequence[Fraction]) -> None:
        self.journal.keep_frames(segment.number, kind, torch.stack(list(canvases)), list(times))

    def _write(self, path: Path, name: str, canvases: Sequence[Tensor], times: Sequence[Fraction]) -> None:
        writer, columns = self._writers[name]
        with writer.part(path) as part:
            for canvas, time in zip(canvases, times, strict=True):
                if self.stopped:
                    raise KeyboardInterrupt
                part.write(canvas[..., columns], time)

    def _part(self, number: int, name: str) -> Path:
        return self.journal.file(number, name)


@contextmanager
def _removed_if_taken(joining: Path) -> Iterator[None]:
    """Remove ``joining`` if an output is taken before any is in place: what exists is not this journal's."""
    try:
        yield
    except Taken:
        joining.unlink()
        raise
