"""From restored segments to parts on disk, and from parts to the outputs."""

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

    A *canvas* is a frame for all outputs, side by side: each writer takes its columns of it. Cross-fades, and what is
    kept for them, are of canvases.

    Args:
        writers: part name -> writer and the columns of the canvas that are its own; the result first.
    """

    def __init__(
        self,
        journal: Journal,
        plan: Sequence[Segment],
        rules: PlanRules,
        writers: dict[str, tuple[VideoWriter, slice]],
    ) -> None:
        self.journal, self.plan, self.rules = journal, plan, rules
        self.stopped = False  # set from another thread: what is being written is no longer wanted
        self._writers = writers

    def done(self, segment: Segment) -> bool:
        return all(self._part(segment.number, name).exists() for name in self._writers)

    def frames_done(self) -> int:
        return sum(self.frames_of(segment) for segment in self.plan if self.done(segment))

    def frames_of(self, segment: Segment) -> int:
        """Frames of the clip that count as this segment's: its part's, and the cross-fade with the chain after."""
        return segment.last - segment.first + self.rules.overlap * segment.fades_out

    def unfinished(self) -> list[Segment]:
        return [segment for segment in self.plan if not self.done(segment)]

    def whole(self) -> bool:
        """Whether all parts are there, cross-fades included."""
        return not self.unfinished() and all(
            self._part(segment.number, f"fade.{name}").exists()
            for segment in self.plan
            if segment.fades_in
            for name in self._writers
        )

    def to_do(self, share: Share) -> list[Segment]:
        """What ``share`` has to restore, in order: of each of its chains, everything from the first missing part on,
        or from further back where the outputs that it would follow are gone."""
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
        """Whether share number ``index`` of as many has something left to do."""
        return any(Share(index, share.count).owns(segment.chain) for segment in self.unfinished())

    def tail_before(self, segment: Segment, width: int) -> Tensor | None:
        """The last outputs of the segment before, ``overlap 3 H width``."""
        return self.journal.frames(segment.number - 1, "tail")[0][..., -width:] if self.rules.overlap else None

    def kept_tail(self, output: Tensor) -> Tensor | None:
        """The last frames of ``output`` as they would be read back, so that an interruption changes nothing."""
        return in_levels(output[-self.rules.overlap :]) if self.rules.overlap else None

    def finish(self, segment: Segment, canvases: Sequence[Tensor], times: Sequence[Fraction]) -> None:
        """Write the part of ``segment``, and before it what its neighbours need.

        Args:
            canvases: ``3 H W`` for each frame of the segment; times: of the same frames.
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
        """Put the outputs together, without encoding anything again."""
        joining = self.journal.folder / "joining"
        if joining.exists():  # a process was ended while it did the same: outputs that exist are of these parts
            for writer, _ in self._writers.values():
                writer.overwrite = True
        joining.touch()
        with ExitStack() as stack:
            # The last to be opened is the first to be closed: no comparison without a result.
            for number, (name, (writer, _)) in reversed([*enumerate(self._writers.items())]):
                if number == 0:  # the result's, and not a comparison's that comes after it
                    stack.enter_context(_gone_if_taken(joining))
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
        """Cross-fade two chains, once both sides are there.

        Another process may do the same at this moment, put the outputs together and remove the folder.
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
def _gone_if_taken(joining: Path) -> Iterator[None]:
    """Remove ``joining`` when an output is taken before any has its name: what is there is not this journal's."""
    try:
        yield
    except Taken:
        joining.unlink()
        raise
