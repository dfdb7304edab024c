"""What a method costs: seconds and peak memory, each method in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import resource
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from eval.workers import end_with_parent
from ldm_video.core.errors import UserError
from ldm_video.core.memory import RSS_UNIT, peak_resident

_RESET = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: set the peak resident set back to the present one


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and the most bytes that were resident in main memory at a time (a GPU's are not counted)."""

    seconds: float
    peak_bytes: int


class Worker:
    """``with Worker() as worker: cost = worker(function, *arguments)``, all calls in one fresh process.

    The process starts with the first call, before the clock does, so a library that was loaded for one call is there
    for the next. Raises what the function raises, and ``UserError`` when the process dies, as it does out of memory.
    """

    def __init__(self) -> None:
        # fork would inherit, and count, what this process holds
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=end_with_parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def __call__(self, function: Callable[..., object], *arguments: Any) -> Cost:
        try:
            return self._pool.submit(measure, function, *arguments).result()
        except BrokenProcessPool as error:
            name = getattr(function, "name", getattr(function, "__name__", "the method"))
            raise UserError(f"{name}: its process died, most likely for lack of memory; use smaller clips") from error


def measure(function: Callable[..., object], *arguments: Any) -> Cost:
    """Call, in this process, and say what it cost; a process that the call started and waited for counts as well.

    Of the processes that have ended, the system knows the largest so far: it is told of by :func:`wait_for`, and of
    another one only if it is larger than all before it.
    """
    with suppress(OSError):
        _RESET.write_text(_RESET_PEAK)
    _peaks.clear()
    before = _largest_child()
    started = time.perf_counter()
    function(*arguments)
    seconds = time.perf_counter() - started
    largest = _largest_child()
    return Cost(seconds, max(peak_resident(), *_peaks, largest if largest > before else 0))


_peaks: list[int] = []  # of the processes that were waited for since the present call began


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Wait for the end of a process, whose ``returncode`` is then set; returns the most bytes that it had resident."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    _peaks.append(usage.ru_maxrss * RSS_UNIT)
    return _peaks[-1]


def _largest_child() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT
