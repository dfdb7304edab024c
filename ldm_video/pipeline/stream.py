"""Process segment by segment: read ahead, restore, join to the previous segment."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ldm_video.core.errors import UserError
from ldm_video.diffusion.windows import Window, ramp
from ldm_video.pipeline.plan import PlanRules, Segment

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """One low-res frame ``3 h w``, its hole ``1 H W`` on the output's grid, its index in the clip and its time."""

    pixels: Tensor
    hole: Tensor
    index: int
    pts_seconds: Fraction = Fraction(0)


class RestoreSegment(Protocol):
    """Restores ``t`` frames together."""

    def __call__(
        self, frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None
    ) -> Tensor:
        """``t 3 h w``, ``t 1 H W``, frame indices -> ``t 3 H W``.

        ``shown`` ``t0 3 H W``: the previous segment's output for the first frames; ``before``: the same, if they are to
        stay unchanged.
        """


def read_segments(
    pieces: Iterable[Piece], segments: Iterable[Segment], partial: bool = False
) -> Generator[list[Piece], None, None]:
    """Yield the pieces of each segment. ``pieces`` runs forwards and holds the frames of all; shared ones are kept.

    If ``pieces`` ends early, the incomplete segment is dropped, or yielded as far as it goes if ``partial``.
    """
    source = iter(pieces)
    held: list[Piece] = []
    for segment in segments:
        held = [piece for piece in held if piece.index >= segment.start]
        while not held or held[-1].index < segment.stop - 1:
            piece = next(source, None)
            if piece is None:
                if partial and held:
                    yield held
                return
            held.append(piece)
        yield list(held)


def restore_segment(
    segment: Segment, pieces: Sequence[Piece], tail: Tensor | None, restore: RestoreSegment, rules: PlanRules
) -> Tensor:
    """Restore all frames of the segment, ``t 3 H W``, joined to ``tail``, the last outputs before it in its chain.

    ``fade``: the shared frames are cross-faded. ``continue``: they are ``tail``'s, and known to the model.
    """
    joined = tail if segment.follows and rules.overlap else None
    output = restore(
        torch.stack([piece.pixels for piece in pieces]),
        torch.stack([piece.hole for piece in pieces]),
        [piece.index for piece in pieces],
        joined if rules.join == "continue" else None,
        joined,
    )
    return output if joined is None or rules.join == "continue" else join_tail(joined, output)


def join_tail(tail: Tensor, output: Tensor) -> Tensor:
    """Blend the first frames of ``output`` ``t . H W`` with ``tail``, the previous segment's output for them."""
    n = len(tail)
    return torch.cat([cross_fade(tail, output[:n]), output[n:]])


def cross_fade(before: Tensor, after: Tensor) -> Tensor:
    """Cross-fade from ``before`` ``n . H W`` to ``after``, with linear weights that sum to one."""
    falling, rising = ramp([Window(0, len(before)), Window(0, len(before) + 1)])
    return before * falling[:, None, None, None] + after * rising[:-1, None, None, None]


@contextmanager
def read_ahead(items: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """Make each of ``items`` in a thread while the previous one is in use: two are held at a time."""
    end = object()
    with ThreadPoolExecutor(1, "reader") as pool:

        def ahead() -> Iterator[T]:
            coming = pool.submit(next, items, end)
            while (item := coming.result()) is not end:
                coming = pool.submit(next, items, end)
                yield item  # type: ignore[misc]

        try:
            yield ahead()
        finally:
            pool.submit(items.close)  # in the thread that runs the generator


class WriteBehind:
    """Run work in a thread, in order, one item at a time: ``with WriteBehind() as writer: writer.submit(...)``.

    ``submit`` waits for the previous item and raises its error. Leaving the ``with`` block waits for the last item, and
    raises its error unless the block has an error of its own.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "writer")
        self._wait: Callable[[], None] = lambda: None

    def submit(self, work: Callable[[], None]) -> None:
        """Run ``work`` in the thread, after waiting for the previous item."""
        self._wait()
        self._wait = self._pool.submit(work).result

    def __enter__(self) -> WriteBehind:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self._wait()
        finally:
            self._pool.shutdown(wait=True)


def explain_memory(run: Callable[[], Tensor]) -> Tensor:
    """Call ``run``; if memory is full, raise a ``UserError`` that says what needs less."""
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
