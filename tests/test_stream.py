"""Streams: every frame once and in order, seams that sum to one, and never more in memory than a segment."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm_video.pipeline.stream import Piece, restore_stream


def make_pieces(length: int) -> list[Piece]:
    """Frames whose value is their number; numbers start at 100."""
    return [Piece(torch.full((3, 2, 3), float(i)), torch.full((1, 4, 6), float(i % 2)), 100 + i) for i in range(length)]


def enlarge(frames: Tensor) -> Tensor:
    return frames.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, int, int]:
    """Clip length, segment, overlap."""
    segment = draw(st.integers(1, 9))
    return draw(st.integers(0, 30)), segment, draw(st.integers(0, segment - 1))


@given(plans())
def test_an_identity_gives_every_frame_back_in_order(plan: tuple[int, int, int]) -> None:
    length, segment, overlap = plan
    pieces = make_pieces(length)
    seen: list[list[int]] = []

    def restore(frames: Tensor, hole: Tensor, indices: list[int]) -> Tensor:
        assert 1 <= len(indices) <= segment
        assert torch.equal(frames, torch.stack([pieces[i - 100].pixels for i in indices]))
        assert torch.equal(hole, torch.stack([pieces[i - 100].hole for i in indices]))
        seen.append(indices)
        return enlarge(frames)

    results = list(restore_stream(pieces, restore, segment, overlap))
    assert [piece.index for piece, _ in results] == list(range(100, 100 + length))
    for (piece, output), original in zip(results, pieces, strict=True):
        assert piece is original
        torch.testing.assert_close(output, enlarge(original.pixels))
    for indices in seen:
        assert indices == list(range(indices[0], indices[0] + len(indices)))
    for before, after in pairwise(seen):
        assert len(set(before) & set(after)) == overlap
        assert len(before) == segment


@given(plans())
def test_cross_fades_sum_to_one(plan: tuple[int, int, int]) -> None:
    length, segment, overlap = plan
    results = restore_stream(make_pieces(length), lambda f, *_: torch.full((len(f), 3, 4, 6), 0.7), segment, overlap)
    for _, output in results:
        torch.testing.assert_close(output, torch.full((3, 4, 6), 0.7))


def test_cross_fades_are_linear() -> None:
    calls = iter([0.0, 1.0])  # the second segment answers 1

    def restore(frames: Tensor, *_: object) -> Tensor:
        return torch.full((len(frames), 1, 1, 1), next(calls))

    values = [output.item() for _, output in restore_stream(make_pieces(9), restore, 6, 3)]
    assert values == pytest.approx([0, 0, 0, 0.25, 0.5, 0.75, 1, 1, 1])


@given(plans())
def test_reading_never_runs_ahead_of_one_segment(plan: tuple[int, int, int]) -> None:
    length, segment, overlap = plan
    read = 0

    def source() -> Iterator[Piece]:
        nonlocal read
        for piece in make_pieces(length):
            read += 1
            yield piece

    for done, _ in enumerate(restore_stream(source(), lambda f, *_: enlarge(f), segment, overlap)):
        assert read - done <= segment


def test_a_stream_holds_no_frame_that_is_done() -> None:
    alive: set[int] = set()

    class Tracked(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def source() -> Iterator[Piece]:
        for index in range(40):
            pixels = torch.zeros(3, 2, 2).as_subclass(Tracked)
            alive.add(id(pixels))
            yield Piece(pixels, torch.zeros(1, 2, 2), index)

    def restore(frames: Tensor, *_: object) -> Tensor:
        return frames.as_subclass(torch.Tensor)

    most = 0
    for _piece, _output in restore_stream(source(), restore, 6, 2):
        most = max(most, len(alive))
    assert most <= 6 + 2  # a segment, the frame in the caller's hands and the one in the source's


@pytest.mark.parametrize(("segment", "overlap"), [(4, 4), (4, -1), (0, 0)])
def test_impossible_segments_are_refused(segment: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap < segment"):
        next(restore_stream(make_pieces(3), lambda f, *_: f, segment, overlap))
