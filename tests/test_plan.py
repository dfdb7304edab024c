"""Plans: every frame once, nothing over a cut, lengths alike, and the shape that chains and joins promise."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ldm_video.pipeline.plan import PlanRules, Segment, longest_needed, make_plan


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, list[int], PlanRules]:
    """Frames, cuts, rules."""
    overlap = draw(st.integers(0, 4))
    segment = draw(st.integers(longest_needed(overlap), longest_needed(overlap) + 8))
    frames = draw(st.integers(1, 150))
    cuts = draw(st.lists(st.integers(-3, frames + 3), max_size=6))
    return (
        frames,
        cuts,
        PlanRules(segment, overlap, draw(st.integers(1, 5)), draw(st.sampled_from(["fade", "continue"]))),
    )


def shot_of(frame: int, cuts: list[int]) -> int:
    return sum(cut <= frame for cut in set(cuts) if cut > 0)


@given(cases())
def test_parts_and_cross_fades_hold_every_frame_once(case: tuple[int, list[int], PlanRules]) -> None:
    frames, _, rules = case
    held: Counter[int] = Counter()
    for segment in make_plan(*case):
        assert segment.start <= segment.first < segment.last <= segment.stop
        held.update(range(segment.first, segment.last))
        if segment.fades_in:
            held.update(range(segment.start, segment.start + rules.overlap))
    assert held == Counter(range(frames))


@given(cases())
def test_a_segment_lies_in_one_shot_and_is_not_too_long(case: tuple[int, list[int], PlanRules]) -> None:
    _, cuts, rules = case
    for segment in make_plan(*case):
        assert shot_of(segment.start, cuts) == shot_of(segment.stop - 1, cuts)
        assert 1 <= segment.stop - segment.start <= rules.segment


@given(cases())
def test_segments_of_a_shot_are_alike_and_no_frame_is_in_three(case: tuple[int, list[int], PlanRules]) -> None:
    _, cuts, rules = case
    plan = make_plan(*case)
    for _, members in groupby(plan, lambda segment: shot_of(segment.start, cuts)):
        lengths = [segment.stop - segment.start for segment in members]
        assert max(lengths) - min(lengths) <= 1
        assert len(lengths) == 1 or min(lengths) > 2 * rules.overlap
    for before, after in pairwise(plan):
        same = shot_of(before.start, cuts) == shot_of(after.start, cuts)
        assert before.stop - after.start == (rules.overlap if same else 0)


@given(cases())
def test_chains_are_runs_of_one_shot(case: tuple[int, list[int], PlanRules]) -> None:
    _, cuts, rules = case
    plan = make_plan(*case)
    assert [segment.number for segment in plan] == list(range(len(plan)))
    chains = [list(members) for _, members in groupby(plan, lambda segment: segment.chain)]
    assert [members[0].chain for members in chains] == list(range(len(chains)))
    for members in chains:
        assert len(members) <= rules.chain
        assert len({shot_of(segment.start, cuts) for segment in members}) == 1
        assert [segment.follows for segment in members] == [False] + [True] * (len(members) - 1)
        assert [segment.leads for segment in members] == [True] * (len(members) - 1) + [False]
    for before, after in pairwise(chains):
        shared = rules.overlap > 0 and shot_of(before[0].start, cuts) == shot_of(after[0].start, cuts)
        assert before[-1].fades_out == after[0].fades_in == shared


def spans(plan: tuple[Segment, ...]) -> list[tuple[int, int, int, int]]:
    return [(segment.start, segment.stop, segment.first, segment.last) for segment in plan]


def test_a_plan_by_hand() -> None:
    """12 frames, 5 at once, 1 shared, two in a chain: three segments, the last alone."""
    assert spans(make_plan(12, [], PlanRules(5, 1, 2, "fade"))) == [(0, 5, 0, 4), (4, 9, 4, 8), (8, 12, 9, 12)]
    assert spans(make_plan(12, [], PlanRules(5, 1, 2, "continue"))) == [(0, 5, 0, 5), (4, 9, 5, 8), (8, 12, 9, 12)]
    assert spans(make_plan(12, [6], PlanRules(6, 1))) == [(0, 6, 0, 6), (6, 12, 6, 12)]


def test_a_last_segment_is_not_tiny() -> None:
    lengths = [segment.stop - segment.start for segment in make_plan(33, [], PlanRules(32, 4))]
    assert lengths == [19, 18]


@pytest.mark.parametrize("rules", [(12, 4), (32, -1), (32, 4, 0), (32, 4, 8, "glue")])
def test_impossible_rules_are_refused(rules: tuple) -> None:
    with pytest.raises(ValueError):
        PlanRules(*rules)


def test_no_frames_no_plan() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        make_plan(0, [], PlanRules())
