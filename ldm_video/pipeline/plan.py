"""Which frames are restored together: shots, chains and segments, a pure function of a few numbers.

A clip is split into *shots*, a shot into *segments* that share ``overlap`` frames with their neighbours, and the
segments of a shot into *chains*. Within a chain a segment depends on the one before. Chains are independent: they give
the same frames whichever process computes them, in whatever order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

MIN_OVERLAPS = 3


@dataclass(frozen=True)
class Segment:
    """Frames ``start <= i < stop`` are restored together; its part of the output holds ``first <= i < last``.

    Attributes:
        number: index in the clip, from 0.
        chain: index of its chain in the clip, from 0.
        follows: the previous segment belongs to the same chain.
        leads: the next segment belongs to the same chain.
        fades_in: its first frames are cross-faded with the previous chain, once both exist; ``fades_out``: its last
            frames with the next chain. No part holds these frames.
    """

    number: int
    chain: int
    start: int
    stop: int
    first: int
    last: int
    follows: bool
    leads: bool
    fades_in: bool
    fades_out: bool


@dataclass(frozen=True)
class PlanRules:
    """Parameters of a plan, besides the clip itself. Invalid ones raise ``ValueError``.

    Attributes:
        segment: maximum of frames restored together.
        overlap: frames that adjacent segments of a shot share.
        chain: maximum of segments in a chain.
        join: within a chain, ``fade``: overlapping outputs are cross-faded; ``continue``: the last outputs of the
            previous segment are known pixels of the next and are not written again.
    """

    segment: int = 32
    overlap: int = 4
    chain: int = 8
    join: str = "fade"

    def __post_init__(self) -> None:
        if self.overlap < 0 or self.chain < 1 or self.segment < longest_needed(self.overlap):
            raise ValueError(f"need overlap >= 0, chain >= 1, segment >= {MIN_OVERLAPS} overlaps + 1, got {self}")
        if self.join not in JOINS:
            raise ValueError(f"join is {self.join!r}; use one of {', '.join(JOINS)}")


JOINS = ("fade", "continue")


def longest_needed(overlap: int) -> int:
    """Return the smallest ``PlanRules.segment`` at which no frame is ever shared by three segments."""
    return MIN_OVERLAPS * overlap + 1


def make_plan(frames: int, cuts: Sequence[int], rules: PlanRules) -> tuple[Segment, ...]:
    """Return the segments of a clip of ``frames`` frames, in order. ``cuts``: indices of frames that begin a shot."""
    if frames < 1:
        raise ValueError("a plan needs at least one frame")
    borders = [0, *(cut for cut in sorted(set(cuts)) if 0 < cut < frames), frames]
    segments: list[Segment] = []
    chains = 0
    for start, stop in pairwise(borders):
        spans = split_shot(start, stop, rules.segment, rules.overlap)
        runs = even_runs(len(spans), rules.chain)
        segments += _shot(spans, runs, len(segments), chains, rules)
        chains += len(runs)
    return tuple(segments)


def split_shot(start: int, stop: int, segment: int, overlap: int) -> list[tuple[int, int]]:
    """Return spans of at most ``segment`` frames that overlap by ``overlap``, as few and as equal as possible."""
    length = stop - start
    count = max(1, -(-(length - overlap) // (segment - overlap)))
    total = length + (count - 1) * overlap
    spans, begin = [], start
    for size in even_sizes(total, count):
        spans.append((begin, begin + size))
        begin += size - overlap
    return spans


def even_sizes(total: int, count: int) -> list[int]:
    """Return ``count`` integers that differ by at most one and sum to ``total``, the larger ones first."""
    small, larger = divmod(total, count)
    return [small + (i < larger) for i in range(count)]


def even_runs(items: int, most: int) -> list[int]:
    """Split ``items`` into as few runs of at most ``most`` as possible; return their lengths, as equal as possible."""
    return even_sizes(items, -(-items // most))


def _shot(
    spans: Sequence[tuple[int, int]], runs: Sequence[int], number: int, chain: int, rules: PlanRules
) -> Iterator[Segment]:
    chain_of = [chain + run for run, size in enumerate(runs) for _ in range(size)]
    for i, (start, stop) in enumerate(spans):
        has_before, has_after = i > 0, i + 1 < len(spans)
        follows = has_before and chain_of[i - 1] == chain_of[i]
        leads = has_after and chain_of[i + 1] == chain_of[i]
        shared = has_before and rules.overlap > 0
        fades_in, fades_out = shared and not follows, has_after and rules.overlap > 0 and not leads
        continues = rules.join == "continue"
        yield Segment(
            number=number + i,
            chain=chain_of[i],
            start=start,
            stop=stop,
            first=start + rules.overlap * (fades_in or (follows and continues)),
            last=stop - rules.overlap * (fades_out or (leads and not continues)),
            follows=follows,
            leads=leads,
            fades_in=fades_in,
            fades_out=fades_out,
        )
