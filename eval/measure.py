"""Cost of a method: seconds and peak memory, each method in its own process."""

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
_RESET_PEAK = "5"  # man 5 proc: reset the peak resident set size to the current one


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds, and peak bytes resident in main memory (GPU memory is not counted)."""

    seconds: float
    peak_bytes: int


class Worker:
    """Run functions in one fresh process: ``with Worker() as worker: cost = worker(function, *arguments)``.

    The process starts on the first call, before the clock does; a library loaded by one call stays loaded for the next.
    Raises whatever the function raises, and ``UserError`` if the process dies, for example when it is out of memory.
    """

    def __init__(self) -> None:
        # fork would inherit this process's memory and count it
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
    """Call the function in this process and return its cost, including child processes that it waited for.

    The system only reports the largest of all ended children. Those waited for by :func:`wait_for` are counted exactly,
    any other only if it is larger than all before it.
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


_peaks: list[int] = []  # of the processes waited for during the current call


def wait_for(process: subprocess.Popen[Any]) -> int:
    """Wait for a process to end, set its ``returncode`` and return its peak resident bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    _peaks.append(usage.ru_maxrss * RSS_UNIT)
    return _peaks[-1]


def _largest_child() -> int:
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * RSS_UNIT
