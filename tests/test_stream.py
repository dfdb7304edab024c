"""Streams: the right pieces in order, never more in memory than needed, seams that sum to one, threads that end."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from itertools import islice

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ldm_video.pipeline.plan import PlanRules, longest_needed, make_plan
from ldm_video.pipeline.stream import (
    Piece,
    WriteBehind,
    cross_fade,
    join_tail,
    read_ahead,
    read_segments,
    restore_segment,
)


def make_pieces(length: int) -> list[Piece]:
    """Frames whose value is their number."""
    return [Piece(torch.full((3, 2, 3), float(i)), torch.full((1, 4, 6), float(i % 2)), i) for i in range(length)]


def enlarge(frames: Tensor, *_: object) -> Tensor:
    return frames.repeat_interleave(2, dim=-2).repeat_interleave(2, dim=-1)


@st.composite
def plans(draw: st.DrawFn) -> tuple[int, list[int], PlanRules]:
    overlap = draw(st.integers(0, 3))
    rules = PlanRules(
        longest_needed(overlap) + draw(st.integers(0, 6)), overlap, 8, draw(st.sampled_from(["fade", "continue"]))
    )
    return draw(st.integers(1, 60)), draw(st.lists(st.integers(1, 60), max_size=3)), rules


@given(plans())
def test_each_segment_gets_its_pieces_and_reading_never_runs_ahead(plan: tuple[int, list[int], PlanRules]) -> None:
    frames, cuts, rules = plan
    segments = make_plan(frames, cuts, rules)
    pieces = make_pieces(frames)
    read = 0

    def source() -> Iterator[Piece]:
        nonlocal read
        for piece in pieces:
            read += 1
            yield piece

    for segment, held in zip(segments, read_segments(source(), segments), strict=True):
        assert read == segment.stop
        assert all(a is b for a, b in zip(held, pieces[segment.start : segment.stop], strict=True))


def test_pieces_that_are_passed_over_are_not_held() -> None:
    segments = make_plan(40, [10, 20, 30], PlanRules(10, 0))[1::2]
    held = list(read_segments((piece for piece in make_pieces(40) if piece.index % 20 >= 10), segments))
    assert [[piece.index for piece in pieces] for pieces in held] == [list(range(10, 20)), list(range(30, 40))]


def test_pieces_that_end_early_end_the_segments() -> None:
    assert len(list(read_segments(make_pieces(25), make_plan(40, [10, 20, 30], PlanRules(10, 0))))) == 2


def test_what_is_left_of_a_segment_is_taken_where_it_is_asked_for() -> None:
    pieces, segments = make_pieces(7), make_plan(20, [], PlanRules(5, 0))
    runs = [[p.index for p in run] for run in read_segments(pieces, segments, partial=True)]
    assert runs == [[0, 1, 2, 3, 4], [5, 6]]
    assert list(read_segments(pieces[:0], segments, partial=True)) == []


def test_a_stream_holds_no_frame_that_is_done() -> None:
    alive: set[int] = set()

    class Tracked(torch.Tensor):
        def __del__(self) -> None:
            alive.discard(id(self))

    def source() -> Iterator[Piece]:
        for index in range(60):
            pixels = torch.zeros(3, 2, 2).as_subclass(Tracked)
            alive.add(id(pixels))
            yield Piece(pixels, torch.zeros(1, 2, 2), index)

    most = 0
    for _held in read_segments(source(), make_plan(60, [], PlanRules(7, 2))):
        most = max(most, len(alive))
    assert most <= 7 + 5 + 1  # a segment, what the caller still has of the one before, the frame in the source's hands


@pytest.mark.parametrize("join", ["fade", "continue"])
def test_joined_segments(join: str) -> None:
    """Each segment answers its own number: a fade mixes both, a continuation is told what came before."""
    rules = PlanRules(13, 4, 8, join)
    segments = make_plan(22, [], rules)
    assert len(segments) == 2
    told: list[Tensor | None] = []
    seen: list[Tensor | None] = []

    def restore(
        frames: Tensor, hole: Tensor, indices: list[int], before: Tensor | None, shown: Tensor | None
    ) -> Tensor:
        told.append(before)
        seen.append(shown)
        return torch.full((len(frames), 3, 4, 6), float(len(told) - 1))

    pieces = make_pieces(22)
    first = restore_segment(segments[0], pieces[:13], None, restore, rules)
    second = restore_segment(segments[1], pieces[9:], first[-4:], restore, rules)
    assert told[0] is None and seen[0] is None
    assert seen[1] is not None and torch.equal(seen[1], first[-4:])  # so that what is invented goes on
    if join == "fade":
        assert told[1] is None
        assert second[:, 0, 0, 0].tolist() == pytest.approx([0.2, 0.4, 0.6, 0.8] + [1.0] * 9)
    else:
        assert told[1] is not None and torch.equal(told[1], first[-4:])


@given(st.integers(1, 6))
def test_cross_fades_sum_to_one_and_are_linear(length: int) -> None:
    ones = torch.ones(length, 3, 2, 2)
    torch.testing.assert_close(cross_fade(0.7 * ones, 0.7 * ones), 0.7 * ones)
    steps = cross_fade(0 * ones, ones)[:, 0, 0, 0].tolist()
    assert steps == pytest.approx([(i + 1) / (length + 1) for i in range(length)])
    assert torch.equal(join_tail(0 * ones, torch.cat([ones, ones]))[length:], ones)


def test_reading_ahead_keeps_the_order_and_runs_elsewhere() -> None:
    threads: set[int] = set()

    def items() -> Generator[int, None, None]:
        for i in range(20):
            threads.add(threading.get_ident())
            yield i

    with read_ahead(items()) as ahead:
        assert list(ahead) == list(range(20))
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_reading_ahead_overlaps_and_is_bounded() -> None:
    made = 0

    def items() -> Generator[int, None, None]:
        nonlocal made
        while True:
            made += 1
            yield made

    with read_ahead(items()) as ahead:
        for item in islice(ahead, 50):
            assert item <= made <= item + 1
            time.sleep(0.001)


def test_an_error_in_reading_comes_out_where_it_is_due() -> None:
    def items() -> Generator[int, None, None]:
        yield 1
        raise RuntimeError("unplugged")

    with read_ahead(items()) as ahead:
        assert next(ahead) == 1
        with pytest.raises(RuntimeError, match="unplugged"):
            next(ahead)


def test_reading_that_is_left_early_is_closed() -> None:
    closed = threading.Event()

    def items() -> Generator[int, None, None]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    with pytest.raises(ValueError, match="enough"), read_ahead(items()) as ahead:
        next(ahead)
        raise ValueError("enough")
    assert closed.is_set()


def test_writing_behind_keeps_the_order_and_waits_at_the_end() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.002)
        done.append(number)

    with WriteBehind() as behind:
        for i in range(10):
            behind.submit(lambda i=i: work(i))
            assert len(done) >= i - 1  # one at work, none in a queue
    assert done == list(range(10))


def test_an_error_in_writing_stops_the_work() -> None:
    def fail() -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"), WriteBehind() as behind:
        behind.submit(fail)
        behind.submit(lambda: None)
    with pytest.raises(OSError, match="disk full"), WriteBehind() as behind:
        behind.submit(fail)  # the last one


def test_an_error_beside_the_writing_comes_out_once_the_writer_is_still() -> None:
    done = threading.Event()

    def work() -> None:
        time.sleep(0.02)
        done.set()

    with pytest.raises(ValueError, match="elsewhere"), WriteBehind() as behind:
        behind.submit(work)
        raise ValueError("elsewhere")
    assert done.is_set()
