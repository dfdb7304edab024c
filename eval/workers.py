"""Lifetime of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path

_THREADS = Path("/proc/self/task")  # man 5 proc: each contains `children`; Linux only


def end_with_parent() -> None:
    """End this process as soon as its parent ends, however that happens, without waiting for its work.

    On Linux, its own child processes, such as ``infer.py`` in a benchmark, are terminated too.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        parent.join()
        for child in _children():
            with suppress(OSError):  # it has ended in the meantime
                os.kill(child, signal.SIGTERM)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _children() -> list[int]:
    """Return the process IDs of this process's children; empty outside Linux."""
    found: list[int] = []
    for children in _THREADS.glob("*/children"):
        with suppress(OSError):  # the thread has ended in the meantime
            found += map(int, children.read_text().split())
    return found
