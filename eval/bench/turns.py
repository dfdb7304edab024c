"""Timing of variants that take turns in one process, and the cells of their table."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

Turn = Callable[[], object]


def seconds_of(turn: Turn, device: str) -> float:
    """Return the seconds of one turn: wall time on a GPU, queued work included; CPU time of the process on a CPU."""
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
    """Return the seconds of every turn by name.

    In each round every variant has one turn; the order rotates by one from round to round. ``warmup``: uncounted rounds
    before.
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
    """Return the median ratio over the rounds; other load on the machine slows both sides of a round equally."""
    return statistics.median(a / b for a, b in zip(times, base, strict=True))


def spread(times: Sequence[float]) -> list[str]:
    """Return two table cells: the median, and the range from fastest to slowest."""
    return [f"{statistics.median(times):.3f}", f"{min(times):.3f}-{max(times):.3f}"]


def gibibytes(peak: int | None) -> str:
    """Return a table cell; ``-`` if it was not measured."""
    return "-" if peak is None else f"{peak / 2**30:.2f}"


def markdown(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table of the cells."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, ["---"] * len(heads), *rows))
