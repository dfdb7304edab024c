"""Runs that take turns: what a table of several variants, measured side by side in one process, is made of."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

Turn = Callable[[], object]


def seconds_of(turn: Turn, device: str) -> float:
    """Seconds of one turn: on a GPU by the clock, its work included; on a CPU those of this process's cores."""
    on_gpu = device.startswith("cuda")
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.cuda.synchronize(device)
    begin = clock()
    turn()
    if on_gpu:
        torch.cuda.synchronize(device)
    return clock() - begin


def alternate(turns: Mapping[str, Turn], device: str, rounds: int, warmup: int = 0) -> dict[str, list[float]]:
    """Seconds of each: in every round each has one turn, the first in one round is last in the next.

    ``warmup``: rounds before, which are not counted.
    """
    times: dict[str, list[float]] = {name: [] for name in turns}
    order = list(turns)
    for index in range(warmup + rounds):
        first = index % len(order)
        for name in order[first:] + order[:first]:
            seconds = seconds_of(turns[name], device)
            if index >= warmup:
                times[name].append(seconds)
    return times


def ratio(times: Sequence[float], base: Sequence[float]) -> float:
    """Median over the rounds: what else the machine does slows both sides of a round down."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def spread(times: Sequence[float]) -> list[str]:
    """Two cells: the median, and from the fastest to the slowest."""
    return [f"{statistics.median(times):.3f}", f"{min(times):.3f}-{max(times):.3f}"]


def gibibytes(peak: int | None) -> str:
    """A cell; ``-`` for what was not measured."""
    return "-" if peak is None else f"{peak / 2**30:.2f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))
