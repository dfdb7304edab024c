"""A clip of any length in constant memory: read, restore a segment, cross-fade, hand on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm_video.diffusion.windows import Window, ramp


@dataclass(frozen=True)
class Piece:
    """One low-res frame ``3 h w``, its hole ``1 H W`` on the output's grid, and its number in the clip."""

    pixels: Tensor
    hole: Tensor
    index: int


RestoreSegment = Callable[[Tensor, Tensor, list[int]], Tensor]
"""``restore(frames t 3 h w, hole t 1 H W, indices) -> t 3 H W``."""


def restore_stream(
    pieces: Iterable[Piece], restore: RestoreSegment, segment: int, overlap: int
) -> Iterator[tuple[Piece, Tensor]]:
    """Restore a stream of frames: ``(piece, output 3 H W)`` in order, one for each frame.

    Segments of ``segment`` frames share ``overlap`` frames; across them the outputs are cross-faded with linear
    weights that sum to one. At most ``segment`` frames and ``overlap`` outputs are held.
    """
    if not 0 <= overlap < segment:
        raise ValueError(f"need 0 <= overlap < segment, got {overlap=}, {segment=}")
    source = iter(pieces)
    held: list[Piece] = []
    tail: Tensor | None = None  # overlap 3 H W: the last outputs of the segment before
    while True:
        fresh = _take(source, segment - len(held))
        if not fresh:
            break
        held += fresh
        output = restore(
            torch.stack([p.pixels for p in held]), torch.stack([p.hole for p in held]), [p.index for p in held]
        )
        if tail is not None:
            output = _cross_fade(tail, output)
        ready = max(len(held) - overlap, 0)
        yield from zip(held[:ready], output[:ready], strict=True)
        held, tail = held[ready:], output[ready:]
    if tail is not None:
        yield from zip(held, tail, strict=True)


def _cross_fade(tail: Tensor, output: Tensor) -> Tensor:
    """Blend the first frames of ``output`` ``t 3 H W`` with ``tail``, the same frames seen by the segment before."""
    n, total = len(tail), len(output)
    before, after = ramp([Window(0, n), Window(0, total)])
    blend = tail * before[:n, None, None, None] + output[:n] * after[:n, None, None, None]
    return torch.cat([blend, output[n:]])


def _take(source: Iterator[Piece], count: int) -> list[Piece]:
    return [piece for _, piece in zip(range(count), source, strict=False)]
